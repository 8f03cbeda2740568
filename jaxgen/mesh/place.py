"""Arrays onto the mesh, inside compiled programs and outside of them.

Compiled code asks JAX for the mesh it is traced under (`under` sets it); without one, `constrain`
and `gather` hand back what they are given, and add nothing to the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxgen import tree
from jaxgen.derivatives import linear_call
from jaxgen.errors import ConfigError
from jaxgen.legend import LEGEND
from jaxgen.mesh import rules
from jaxgen.mesh.settings import AXES, divisors_near

LINE = 64  # bytes; a processor uses numpy's memory as it is where it begins at a multiple of that


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array to be filled and given to `jax.device_put`, without another reference to it.

    A processor then takes it over: nothing is copied, and no program compiled, as `jnp.array` does
    for each shape.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + LINE, np.uint8)
    begin = -room.ctypes.data % LINE
    return room[begin : begin + size].view(dtype).reshape(shape)


def laid(array: np.ndarray) -> np.ndarray:
    """Return the array if it lies as an `aligned` one, in C order, else such a copy."""
    if array.flags.c_contiguous and array.ctypes.data % LINE == 0:
        return array
    held = aligned(array.shape, array.dtype)
    held[...] = array
    return held


def joined(arrays: Sequence[Any]) -> Any:
    """Return arrays one after another along their first axis; numpy's as an `aligned` one."""
    if not isinstance(arrays[0], np.ndarray):
        return jnp.concatenate(arrays)
    rows = sum(map(len, arrays))
    return np.concatenate(arrays, out=aligned((rows, *arrays[0].shape[1:]), arrays[0].dtype))


def is_here(array: Any) -> bool:
    """Return whether an array is in the memory of this processor alone, where numpy reads it."""
    if isinstance(array, Tracer) or not isinstance(array, jax.Array):
        return False
    devices = array.devices()
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)


def under(mesh: Mesh | None, function: Callable) -> Callable:
    """Return `function` called under the mesh; itself if there is none."""
    if mesh is None:
        return function

    @wraps(function)
    def placed(*args: Any, **options: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args, **options)

    return placed


def constrain(x: Any, letters: str) -> Any:
    """Return the activation x, laid out as its axes say if there is a mesh, and it `is_ruled`."""
    sizes = _free()
    return _laid(x, letters, rules.USED, sizes) if sizes and is_ruled() else x


def gather(weight: Any, letters: str, width: int | None = None) -> Any:
    """Return a stored weight as products use it: whole along fsdp, still shared along tensor.

    Its gradient goes back to where the weight is stored, which makes a reduce-scatter of the sum
    over replicas. A leaf that is no array (quantised, low rank) is handed back. width: the size of
    D, where it is known; in code written per device a weight that has it is whole already.
    """
    if not hasattr(weight, "ndim"):
        return weight
    by_hand = manual().get("fsdp", 1) > 1 and "D" in letters
    if by_hand and weight.shape[letters.index("D")] != width:
        weight = jax.lax.all_gather(weight, "fsdp", axis=letters.index("D"), tiled=True)
    return _gathered(letters, weight) if _free() and is_ruled() else weight


def is_ruled() -> bool:
    """Return whether the rules know all axes that the compiler may spread activations over.

    Where somebody has named axes of his own, it follows the layout of parameters and batch: any
    layout of ours would gather what is spread over an axis that we know nothing of.
    """
    return all(axis in AXES for axis in _free())


def is_shared() -> bool:
    """Return whether stored weights are spread over fsdp, so that products must gather them."""
    ruled = is_ruled() and _free().get("fsdp", 1) > 1
    return ruled or manual().get("fsdp", 1) > 1


def shards(letters: str) -> int:
    """Return over how many devices activations with these axes are spread, 1 without a mesh."""
    sizes = _free()
    return prod(sizes.get(axis, 1) for letter in letters for axis in rules.USED.get(letter, ()))


def is_spread() -> bool:
    """Return whether the compiler spreads activations over devices, by the rules."""
    return bool(_free()) and is_ruled()


def axes_of(letter: str, size: int) -> tuple[str, ...]:
    """Return the mesh axes that an axis of activations, or of a weight as used, is spread over."""
    part = rules.spec(letter, (size,), rules.USED, _free())[0] or ()
    return (part,) if isinstance(part, str) else tuple(part)


def is_alone() -> bool:
    """Return whether one device runs the code being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": what the code being traced will run on.

    That is the mesh's kind of device, which need not be here; without a mesh, JAX's default.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def memory() -> int | None:
    """Return the bytes of a device's memory that JAX may use here, None where it does not tell."""
    stats = jax.local_devices()[0].memory_stats() if platform() == jax.default_backend() else None
    return (stats or {}).get("bytes_limit")


def alone(
    function: Callable,
    arrays: Sequence[Any],
    letters: Sequence[str],
    out: str,
    *,
    first: tuple[Any, Callable] | None = None,
) -> Any:
    """Return function(*arrays) where each device works on its own part, as the letters lay it.

    For what the compiler cannot spread by itself. out: the letters of the result, which has the
    shape of the first array. first: a leading argument, and what makes its specs of the
    NamedSharding of (heads, queries).
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {a for a in mesh.axis_names if a not in mesh.manual_axes} if not mesh.empty else set()
    lead = () if first is None else (first[0],)
    if not free:
        return function(*lead, *arrays)
    sizes = _free()
    specs = [
        None if x is None else rules.spec(words, x.shape, rules.USED, sizes)
        for x, words in zip(arrays, letters, strict=True)
    ]
    if first is not None:
        queries = rules.spec("T", arrays[0].shape[1:2], rules.USED, sizes)
        plain = AbstractMesh(mesh.axis_sizes, mesh.axis_names)  # one without manual axes
        specs.insert(0, first[1](NamedSharding(plain, PartitionSpec(None, *queries))))
    result = rules.spec(out, arrays[0].shape, rules.USED, sizes)
    return jax.shard_map(
        function, in_specs=tuple(specs), out_specs=result, axis_names=free, check_vma=False
    )(*lead, *arrays)


def per_row(function: Callable, arrays: Sequence[Any], letters: Sequence[str]) -> Any | None:
    """Return (sum, [B, T]) of function(*arrays), each device on rows and positions of its own.

    An array without rows is handed in as it is stored, and may be `gather`ed: its gradient is
    summed on each device first, and over the devices once. None where no axis shares rows or
    positions, or where they don't divide.
    """
    free = _free() if is_ruled() else {}
    sizes = {axis: free[axis] for letter in "BT" for axis in rules.USED[letter] if axis in free}
    if not sizes:
        return None

    def spec(x: Any, words: str) -> PartitionSpec:
        if len(words) != len(x.shape):  # of a quantised leaf
            return PartitionSpec()
        return rules.spec(words, x.shape, rules.USED if "B" in words else rules.STORED, sizes)

    specs = tuple(
        jax.tree.map(partial(spec, words=words), array)
        for array, words in zip(arrays, letters, strict=True)
    )
    each = specs[letters.index("BT")]
    if len(jax.tree.leaves(tuple(each))) != len(sizes):
        return None

    def local(*arrays: Any) -> Any:
        total, each = function(*arrays)
        return jax.lax.psum(total, tuple(sizes)), each

    return jax.shard_map(
        local, in_specs=specs, out_specs=(PartitionSpec(), each), axis_names=set(sizes)
    )(*arrays)


def manual() -> dict[str, int]:
    """Return the mesh axes, with sizes, along which this code is written per device by hand."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty else {axis: mesh.shape[axis] for axis in mesh.manual_axes}


def global_rows(rows: int) -> tuple[Any, int]:
    """Return (index of this device's first row, rows of all), in code written per device.

    rows: those of one device. Elsewhere a program has all rows: (0, rows).
    """
    index, count = jnp.zeros((), jnp.int32), 1
    for axis, size in manual().items():
        if size > 1:
            index, count = index * size + jax.lax.axis_index(axis), count * size
    return index * rows, count * rows


def _free() -> dict[str, int]:
    """Return the mesh axes of more than one device that the compiler may use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {axis: mesh.shape[axis] for axis in mesh.auto_axes if mesh.shape[axis] > 1}


def _laid(x: Any, letters: str, table: rules.Rules, sizes: Mapping[str, int]) -> Any:
    return jax.lax.with_sharding_constraint(x, rules.spec(letters, x.shape, table, sizes))


def _gathered(letters: str, weight: Any) -> Any:
    whole = lambda _, w: _laid(w, letters, rules.USED, _free())  # noqa: E731
    stored = lambda _, grad: _laid(grad, letters, rules.STORED, _free())  # noqa: E731
    return linear_call(whole, stored, (), weight)


def state_shardings(mesh: Mesh | AbstractMesh, shapes: Any, axes: tree.Tree) -> Any:
    """Return the sharding of each leaf of a training state (or of params alone).

    shapes: its ShapeDtypeStructs; axes: the parameters' logical axes. A leaf whose path ends with
    a parameter's path and that has as many dimensions is kept as the parameter: so are the moments
    of any optimizer. All others (steps, keys, factored moments) are whole everywhere.
    """
    letters = tree.flatten(axes)

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        for start in range(len(names)):
            axes = letters.get("/".join(names[start:]))
            if axes is not None and len(axes) == len(leaf.shape):
                return NamedSharding(mesh, rules.stored(axes, leaf.shape, mesh.shape))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, shapes)


def check_params(mesh: Mesh | AbstractMesh, shapes: tree.Tree, axes: tree.Tree) -> None:
    """Raise ConfigError for the first parameter dimension that its mesh axis does not divide."""
    letters = tree.flatten(axes)
    for path, leaf in tree.flatten(shapes).items():
        vector = len(letters[path].replace("L", "")) < 2
        for letter, size in zip(letters[path], leaf.shape, strict=True):
            for axis in rules.STORED.get(letter, ()):
                parts = mesh.shape.get(axis, 1)
                if size % parts and not (vector and axis == "fsdp"):
                    raise ConfigError(
                        f"{path}: axis {letter} ({LEGEND[letter]}) of size {size} is not a "
                        f"multiple of mesh.{axis}={parts}; nearest sizes that work: "
                        f"{divisors_near(size, parts)}; nearest mesh.{axis}: "
                        f"{_fitting(size, parts)}"
                    )


def check_batch(mesh: Mesh | AbstractMesh, batch: int, accumulate: int, context: int) -> None:
    """Raise ConfigError if rows or positions of a batch do not divide over the mesh."""
    axes = rules.USED["B"]
    each = prod(mesh.shape.get(axis, 1) for axis in axes)
    rows = each * accumulate
    if batch % rows:
        words = " * ".join(f"mesh.{axis}={mesh.shape.get(axis, 1)}" for axis in axes)
        raise ConfigError(
            f"train.batch={batch} is not a multiple of {words} * train.accumulate={accumulate} = "
            f"{rows}; nearest that work: {divisors_near(batch, rows)}"
            f"{_other(batch, each, accumulate)}"
        )
    if context % mesh.shape["sequence"]:
        raise ConfigError(
            f"model.context={context} is not a multiple of mesh.sequence="
            f"{mesh.shape['sequence']}; nearest that work: "
            f"{divisors_near(context, mesh.shape['sequence'])}"
        )


def _other(batch: int, each: int, accumulate: int) -> str:
    """Return the number of microbatches that keeps a batch, if one does: the next, or the most."""
    if batch % each:
        return ""
    divisors = [d for d in range(1, batch // each + 1) if batch // each % d == 0]
    fitting = min((d for d in divisors if d >= accumulate), default=divisors[-1])
    return f", or train.accumulate={fitting}"


def _fitting(size: int, wanted: int) -> str:
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    below = max(d for d in divisors if d <= wanted)
    above = min((d for d in divisors if d >= wanted), default=size)
    return f"{below} or {above}"


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Return how an array [B, ...] or [B, T, ...] of a batch is spread."""
    letters = ("BT" + "." * len(shape))[: len(shape)]
    return NamedSharding(mesh, rules.spec(letters, shape, rules.USED, mesh.shape))


def own_rows(mesh: Mesh | None, batch: int) -> tuple[int, int]:
    """Return (index, count): which of how many equal parts of a batch this process feeds.

    Processes that share rows (their tensor or sequence axis crosses hosts) feed the same part.
    """
    if mesh is None:
        return 0, 1
    places = batch_sharding(mesh, (batch,)).addressable_devices_indices_map((batch,))
    spans = [(index or (slice(None),))[0].indices(batch) for index in places.values()]
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    each = last - first
    assert batch % each == 0 and first % each == 0, (first, last, batch)
    return first // each, batch // each


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """Return this process's rows as arrays of the global batch of `rows` rows."""
    return {name: _placed(mesh, array, rows) for name, array in batch.items()}


def _placed(mesh: Mesh, array: np.ndarray, rows: int) -> jax.Array:
    shape = (rows, *array.shape[1:])
    first = own_rows(mesh, rows)[0] * array.shape[0]

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(rows)
        return array[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), part)


def fetch(values: Any) -> Any:
    """Return a tree on the host, gathered from all processes where it is spread over them."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, values))
