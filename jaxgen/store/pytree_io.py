"""The leaves of any pytree as named arrays on the host, and back.

A leaf's name is its path, "params/layers/attn/q". Random keys become their key data, Python
numbers 0-d arrays; the abstract tree given to restore says which type a leaf had.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import CheckpointError

AVERAGE = "optimizer/average/"  # `train.average.Averaged` in a training state


@dataclass(frozen=True)
class Leaf:
    """An array's entry in the manifest; key: the PRNG implementation if it is a random key."""

    dtype: str
    shape: tuple[int, ...]
    key: str | None = None

    @property
    def nbytes(self) -> int:
        """The size of the array."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        array = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        return f"a {self.key} key of {array}" if self.key else array


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return {"a/b/c": leaf} of any pytree; ValueError if two leaves have one name."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two leaves are called {name!r}; a checkpoint needs distinct paths")
        leaves[name] = leaf
    return leaves


def to_host(tree: Any) -> tuple[dict[str, Leaf], dict[str, np.ndarray]]:
    """Return ({name: Leaf}, {name: array}), valid also after donation of the tree.

    Raises TypeError naming a leaf that is not made of numbers.
    """
    leaves = named_leaves(tree)
    keys = {name: key_impl(leaf) for name, leaf in leaves.items()}
    plain = {
        name: jax.random.key_data(leaf) if keys[name] else leaf for name, leaf in leaves.items()
    }
    for leaf in plain.values():  # all transfers start before the first is waited for
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    arrays = {name: to_numpy(name, leaf) for name, leaf in plain.items()}
    return {n: Leaf(a.dtype.name, a.shape, keys[n]) for n, a in arrays.items()}, arrays


def batches(leaves: Mapping[str, Leaf], most: int) -> Iterator[dict[str, Leaf]]:
    """Yield the leaves in parts of at most so many bytes together, or of a single larger one."""
    part, size = {}, 0
    for name, leaf in leaves.items():
        if part and size + leaf.nbytes > most:
            yield part
            part, size = {}, 0
        part[name] = leaf
        size += leaf.nbytes
    if part:
        yield part


def key_impl(leaf: Any) -> str | None:
    """Return the PRNG implementation of a typed random key, also an abstract one, or None."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return None
    names: list[str] = []
    # Only an array knows its implementation; under eval_shape an abstract key is one.
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), leaf)
    return names[0]


def spec_of(leaf: Any) -> Leaf:
    """Return the Leaf that an array for this leaf of an abstract tree must match."""
    impl = key_impl(leaf)
    if impl:
        data = jax.eval_shape(jax.random.key_data, leaf)
        return Leaf(data.dtype.name, data.shape, impl)
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    return Leaf(np.dtype(leaf.dtype).name, tuple(leaf.shape))


def digest(array: np.ndarray) -> str:
    """Return the sha256 (hex) of dtype, shape and raw bytes, however the array is laid out."""
    array = np.asarray(array, order="C")
    result = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
    result.update(array.reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def mismatches(abstract: Mapping[str, Any], saved: Mapping[str, Leaf]) -> list[str]:
    """Return each path at which the saved leaves are not those of the abstract tree."""
    want = {name: spec_of(leaf) for name, leaf in abstract.items()}
    return [
        f"{name}: {saved.get(name, 'absent')} instead of {want.get(name, 'nothing')}"
        for name in sorted(want.keys() | saved.keys())
        if want.get(name) != saved.get(name)
    ]


def rebuild(abstract: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return a tree like `abstract` with the arrays' values, placed as its shardings say."""
    structure = jax.tree_util.tree_structure(abstract)
    leaves = [place_like(name, arrays[name], like) for name, like in named_leaves(abstract).items()]
    return jax.tree_util.tree_unflatten(structure, leaves)


def place_like(name: str, array: np.ndarray, like: Any) -> Any:
    """Return the array as `like` is: a Python number, a numpy array, or a jax array or key.

    Raises CheckpointError for 64 bits that JAX would cut to 32.
    """
    if isinstance(like, bool | int | float | complex):
        return type(like)(array.item())
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray):
        return array
    impl = key_impl(like)
    # The sharding of an uncommitted array is no constraint.
    where = like.sharding if getattr(like, "committed", True) else None
    there = None if impl else where
    placed = jax.device_put(array, there)
    if placed.dtype != array.dtype:
        raise CheckpointError(
            f"{name} is {array.dtype.name}, which JAX would cut to {placed.dtype.name}; "
            "set JAX_ENABLE_X64=1"
        )
    if all(device.platform == "cpu" for device in placed.devices()):
        # On CPU, JAX may alias numpy's memory, which a step could then not donate. The copy's
        # sharding has another type, so it is set again.
        placed = jax.device_put(placed.copy(), there)
    if impl:
        placed = jax.random.wrap_key_data(placed, impl=impl)
        placed = placed if where is None else jax.device_put(placed, where)
    return placed


def stored_params(leaves: Mapping[str, Leaf]) -> dict[str, str]:
    """Return {name of a parameter: name of the array to read for it} of a training state.

    That is the average (`train.average`) where the state has one: the run validates that.
    """
    names = [name for name in leaves if name.startswith("params/")]
    means = {name: AVERAGE + name.removeprefix("params/") for name in names}
    return means if all(mean in leaves for mean in means.values()) else {n: n for n in names}


def place_on_default(name: str, array: np.ndarray, leaf: Leaf) -> Any:
    """Return the array on the default device, or the random key that it is the data of.

    An average of parameters is kept in float32, and becomes what they are.
    """
    array = array if leaf.key else array.astype(np.dtype(leaf.dtype), copy=False)
    placed = place_like(name, array, jax.ShapeDtypeStruct(array.shape, array.dtype))
    return jax.random.wrap_key_data(placed, impl=leaf.key) if leaf.key else placed


def to_numpy(name: str, leaf: Any) -> np.ndarray:
    """Return a leaf on the host, as it is now; TypeError if it is not made of numbers."""
    array = np.asarray(leaf)
    # Numbers, and the narrow floats of ml_dtypes, which are opaque bytes to numpy.
    ours = array.dtype.kind in "biufc" and array.dtype.char not in "gG"  # g: the C long double
    if not ours and (array.dtype.kind != "V" or not jnp.issubdtype(array.dtype, jnp.number)):
        raise TypeError(f"{name} is {type(leaf).__name__}; a checkpoint holds numbers only")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # On CPU numpy aliases a jax array's memory. While it does, JAX does not donate that buffer: a
    # step that the array is donated to allocates another.
    return array if isinstance(leaf, jax.Array) else array.copy(order="C")
