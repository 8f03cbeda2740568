"""Memory, traffic and time of a training step from shapes alone; bytes and seconds of one device.

A plan's figures for chips elsewhere, and what refuses a run that this machine can't hold.

Parameters and optimizer are exact: they are the shapes and shardings that training itself would
use. The rest is arithmetic on what a step must keep and move, without what a compiler adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxgen import host, tree
from jaxgen.config import ModelConfig
from jaxgen.data.objectives.settings import PREFERENCES
from jaxgen.errors import ConfigError
from jaxgen.files import human
from jaxgen.mesh import place
from jaxgen.mesh.settings import AXES, MeshSettings
from jaxgen.models import api
from jaxgen.nn.feed import is_gated
from jaxgen.nn.unroll import layers_per_step
from jaxgen.ops import keys
from jaxgen.ops.attention import dispatch
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.masks import AttentionMask
from jaxgen.ops.random import DropoutRng
from jaxgen.profile import chips
from jaxgen.profile.chips import Chip
from jaxgen.run import shapes, traffic
from jaxgen.run.settings import Settings
from jaxgen.run.traffic import WIDTH, key_width, layer_mean, logits_chunk
from jaxgen.train import flops

USABLE = 0.92  # of a chip's memory: the rest is the runtime's and fragmentation
# In line nothing is stacked, but buffers overlap less: 1.22 to 1.51 times was measured on three
# shapes on two CPU cores, 2.5 to 34 million parameters.
KEPT_UNROLLED = 1.35
SHORTEST = 64  # tokens of a context that is suggested
# FLOP/s that training reaches: of a core of a CPU, and of an accelerator that is in no table.
CORE, OTHER = 5e10, 2e13


@dataclass(frozen=True)
class MemoryPlan:
    """What one device of `chips` holds, does and sends in a step."""

    settings: Settings
    chip: Chip
    chips: int
    parameters: int  # scalars of the whole model
    memory: dict[str, float]  # bytes by what holds them
    traffic: dict[str, float]  # bytes sent by which collective
    flops: float
    seconds: dict[str, float]  # compute, memory, links
    cache: float  # bytes of a full key/value cache for one row of context, all devices
    checkpoint: float

    @property
    def total(self) -> float:
        """Bytes that the device holds at the step's peak."""
        # Logits are gone by the time that the first layer goes backward.
        apart = min(self.memory["working layer"], self.memory["logits"])
        return sum(self.memory.values()) - apart

    @property
    def state(self) -> float:
        """Bytes of parameters and optimizer, which a step is given and gives back."""
        return self.memory["parameters"] + self.memory["optimizer"]

    @property
    def fits(self) -> bool:
        """Whether that is less than the usable memory."""
        return self.total <= USABLE * self.chip.memory

    @property
    def step(self) -> float:
        """Seconds of a step: its resources overlap perfectly, on a CPU they take turns."""
        return (sum if self.chip.platform == "cpu" else max)(self.seconds.values())

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])


class Known(NamedTuple):
    """What neither mesh, remat nor microbatches change."""

    axes: tree.Tree  # of the model
    trained: tree.Tree  # of what is trained: the model, or an adapter
    state: Any  # ShapeDtypeStructs
    base: Any  # ShapeDtypeStructs of the model beneath an adapter, None without one
    work: float  # FLOPs of a token


def plan_memory(settings: Settings, chip: Chip, chips: int) -> MemoryPlan:
    """Return the Plan of a training step; ConfigError if mesh, model and batch don't divide."""
    return _make(_describe_model(settings), settings, chip, chips)


def _describe_model(settings: Settings) -> Known:
    model = settings.model
    trained = shapes.trained(settings)[1]
    beneath = shapes.state(settings), shapes.base(settings)
    return Known(api.axes(model), trained, *beneath, shapes.flops_per_token(settings))


def _make(known: Known, settings: Settings, chip: Chip, chips: int) -> MemoryPlan:
    model, train = settings.model, settings.train
    sizes = settings.mesh.sizes(chips)
    device = AbstractDevice(device_kind=chip.name, num_cores=None, platform=chip.platform)
    mesh: Any = AbstractMesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device
    )
    axes, trained, state, base, work = known
    place.check_params(mesh, api.abstract(model), axes)
    place.check_batch(mesh, train.batch, train.accumulate, settings.row_length)
    counted = settings
    if settings.objective.name in PREFERENCES:  # a row holds two texts
        train = replace(train, batch=2 * train.batch)
        counted = replace(settings, train=train)
    shardings = place.state_shardings(mesh, state, trained)
    parameters = _held(state.params, shardings.params)
    whole = sum(_bytes(leaf) for leaf in jax.tree.leaves(state))
    held = {
        "parameters": parameters,
        "optimizer": _held(state.optimizer, shardings.optimizer),
        # With microbatches a float32 sum of gradients lives beside each microbatch's own.
        "gradients": parameters * (1 if train.accumulate == 1 else 2),
    }
    beneath = 0.0
    if base is not None:
        beneath = _held(base, place.state_shardings(mesh, base, axes))
        held["parameters beneath the adapter"] = beneath
    if settings.objective.name == "policy" and settings.policy.beta and base is None:
        held["reference model"] = parameters
    held |= _activations(model, train, sizes, chip.platform, keeps_scores(counted, mesh))
    if _is_unrolled(model, base or state.params, mesh):
        held["activations"] *= KEPT_UNROLLED
    work *= train.batch * model.context / chips
    work *= 4 / 3 if model.remat == "full" else 1
    if settings.objective.name == "policy":
        work += _of_rollouts(settings) / chips
        rows = train.batch / (sizes[0] * sizes[1] * sizes[2])
        in_step = held["activations"] + held["logits"] + held["gradients"]
        held["cache of rollouts, above the step"] = max(rows * _of_cache(model) - in_step, 0.0)
    count = tree.count(api.abstract(model))
    sent = traffic.of_step(model, train, sizes, count)
    if base is not None:  # which has no gradient
        share = tree.count(state.params) / count
        sent = {n: x * (share if "gradient" in n else 1) for n, x in sent.items()}
        count += tree.count(state.params)
    moved = held["parameters"] * (3 * train.accumulate + 2) + 2 * held["optimizer"]
    moved += (
        2 * beneath * train.accumulate
        + 2 * (held["activations"] + held["logits"]) * train.accumulate
    )
    seconds = {
        "compute": work / chip.flops,
        "memory": moved / chip.bandwidth,
    } | traffic.seconds_of(sent, sizes, chip, chips)
    cache = _of_cache(model)
    return MemoryPlan(settings, chip, chips, count, held, sent, work, seconds, cache, float(whole))


def _of_rollouts(settings: Settings) -> float:
    """Return FLOPs of writing a batch of completions, and of reading them again."""
    policy, train = settings.policy, settings.train
    reads = (policy.beta > 0) + policy.needs_old
    forward = flops.per_token(settings.model) / 3 * train.batch * settings.model.context
    return forward * (1 + reads) / policy.iterations


def _of_cache(model: ModelConfig) -> float:
    """Return bytes of what decoding keeps of one row of context tokens, an encoder's memory not."""
    if model.topology == "encoder":
        return 0.0
    memory = model.context if model.topology == "encoder_decoder" else None
    made = jax.eval_shape(lambda: api.empty_cache(model, 1, model.context, memory=memory))
    return float(sum(map(_bytes, jax.tree.leaves((made.full, made.sliding, made.state)))))


def this_machine() -> tuple[Chip, int]:
    """Return (one of the devices here, how many there are); rates are nominal, nothing is run."""
    devices = jax.devices()
    known = chips.of_device(devices[0].device_kind)
    if known is not None:
        return replace(known, memory=device_memory()), len(devices)
    platform = jax.default_backend()
    rate = CORE * host.cores() / len(devices) if platform == "cpu" else OTHER
    kind = platform if platform in ("tpu", "gpu") else "cpu"
    memory = device_memory()
    return Chip(devices[0].device_kind, rate, memory, 1e11, 1e11, kind), len(devices)


def device_memory() -> float:
    """Return the bytes of memory of a device here; those of a CPU share the machine's."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return float(limit) if limit else host.memory() / jax.local_device_count()


def check(settings: Settings) -> None:
    """Raise ConfigError, with the nearest change that helps, if a step does not fit this machine.

    The vocabulary must be known.
    """
    plan = plan_memory(settings, *this_machine())
    if plan.fits:
        return
    needs = f"a training step needs {human(plan.total)} of memory"
    has = f"{plan.chip.name} has {human(USABLE * plan.chip.memory)} for it"
    other = nearest(plan)
    if other is None:
        raise ConfigError(f"{needs}, {has}; take fewer model.layers or a smaller model.d_model")
    raise ConfigError(
        f"{needs}, {has}; nearest that fits: {changes(plan, other)} ({human(other.total)})"
    )


def changes(plan: MemoryPlan, other: MemoryPlan) -> str:
    """Return what `nearest` has changed, as overrides."""
    words = []
    for section, name in (("train", "accumulate"), ("model", "remat"), ("model", "context")):
        value = getattr(getattr(other.settings, section), name)
        if value != getattr(getattr(plan.settings, section), name):
            words.append(f"{section}.{name}={value}")
    if other.settings.mesh != plan.settings.mesh:
        sizes = zip(AXES, other.settings.mesh.sizes(plan.chips), strict=True)
        words.append(f"mesh={','.join(f'{axis}:{size}' for axis, size in sizes)}")
    return " ".join(words)


def nearest(plan: MemoryPlan) -> MemoryPlan | None:
    """Return the first change of remat, microbatches, mesh or context with which the plan fits.

    The cheapest in time are tried first: more microbatches cost least, then recomputing, then a
    wider fsdp axis in the place of replicas; a shorter context, another model, comes last. None if
    nothing helps.
    """
    known = _describe_model(plan.settings)
    for settings in _changes(plan.settings, plan.chips):
        try:
            other = _make(known, settings, plan.chip, plan.chips)
        except ValueError:
            continue
        if other.fits:
            return other
    return None


def _changes(settings: Settings, chips: int) -> Iterator[Settings]:
    kinds = ("none", "dots", "full")
    remats = kinds[kinds.index(settings.model.remat) :]
    for mesh in _meshes(settings.mesh, chips):
        for remat in remats:
            for factor in (1, 2, 4, 8, 16, 32, 64):
                accumulate = settings.train.accumulate * factor
                if settings.train.batch % accumulate:
                    continue
                yield replace(
                    settings,
                    mesh=mesh,
                    model=settings.model.replace(remat=remat),
                    train=replace(settings.train, accumulate=accumulate),
                )
    if settings.model.context >= 2 * SHORTEST:
        shorter = settings.model.replace(context=settings.model.context // 2)
        yield from _changes(replace(settings, model=shorter), chips)


def _meshes(mesh: MeshSettings, chips: int) -> Iterator[MeshSettings]:
    yield mesh
    for tensor in (1, 2, 4, 8, 16):
        for fsdp in (2**power for power in range(1, 14)):
            if mesh.fsdp < fsdp and chips % (fsdp * mesh.expert * tensor) == 0:
                yield replace(mesh, data=None, fsdp=fsdp, tensor=tensor)


def _bytes(leaf: Any) -> int:
    return prod(leaf.shape) * leaf.dtype.itemsize


def _held(shapes: Any, shardings: Any) -> float:
    parts = jax.tree.map(
        lambda x, where: prod(where.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings
    )
    return float(sum(jax.tree.leaves(parts)))


def keeps_scores(settings: Settings, mesh: Any) -> bool:
    """Return whether attention under a mesh holds all scores, or has a kernel that does not."""
    model, train = settings.model, settings.train
    rows, dtype = train.batch // train.accumulate, model.compute_dtype
    q, k = (
        jax.ShapeDtypeStruct((rows, model.context, heads, model.H), dtype)
        for heads in (model.heads, model.K)
    )
    direction = "both" if model.topology == "encoder" else "back"
    ids = jax.ShapeDtypeStruct((rows, model.context), "int32")
    mask = AttentionMask(None, ids, ids, direction, model.window, "running")
    bias = q if model.has_score_bias else None
    key = jax.eval_shape(lambda: keys.from_seed(0))
    drop = DropoutRng(key, 1 - model.score_dropout, 0, rows) if model.score_dropout else None
    args = AttentionArgs(q, k, k, mask, 1.0, model.scores.cap, bias, drop)  # pyright: ignore
    with jax.sharding.use_abstract_mesh(mesh):
        return dispatch.choose(args) == "plain"


def _is_unrolled(model: ModelConfig, params: Any, mesh: Any) -> bool:
    """Return whether a step on a CPU compiles its layers one after another (`nn/stack.py`)."""
    with jax.sharding.use_abstract_mesh(mesh):
        if place.platform() != "cpu" or model.remat != "none":
            return False
        periods = model.layers // len(model.pattern)
        return 1 < periods <= layers_per_step(params.get("layers"), model)


def _activations(
    model: ModelConfig, train: Any, sizes: tuple[int, ...], platform: str, keeps: bool
) -> dict[str, float]:
    """Return bytes of saved activations, one layer's work, its gathered weights, and logits."""
    data, fsdp, expert, tensor, sequence = sizes
    width, rows = (
        WIDTH[model.compute_dtype],
        train.batch / train.accumulate / (data * fsdp * expert),
    )
    used, there = (layer_mean(model, lambda own, i=i: own.experts.widths(own.F)[i]) for i in (0, 1))
    tokens = rows * model.context / sequence
    heads = layer_mean(model, lambda own: own.heads * own.H) / tensor
    kv = layer_mean(model, key_width) / tensor
    gates = 3 if is_gated(model.feed) else 2
    dots = heads * 2 + 2 * kv + 2 * model.d_model + gates * used / tensor
    scores = 2 * 4 * model.heads / tensor * rows * model.context**2 / sequence if keeps else 0
    # Of several residual streams a layer keeps what it read of each.
    stream = tokens * model.d_model * width * model.residual.streams
    # Of a layer's products, and of all its arrays: those that each compiler was seen to keep.
    some, most = dots, dots * (1.5 if platform == "cpu" else 1.25)
    if platform == "gpu":
        some = heads + 2 * kv + model.d_model + (gates - 1) * used / tensor
        most = dots - 2 * model.d_model
    every = stream * 4 + tokens * most * width + scores
    saved = {"full": stream, "dots": stream + tokens * some * width, "none": every}[model.remat]
    layer = (2 * heads + 2 * kv) * model.d_model * tensor + gates * model.d_model * there / expert
    # A layer's weights and their gradients; of two layers where one is gathered ahead of its turn.
    own = model.per_layer  # looked up, and with what is projected
    vectors = tokens * model.layers * (own.width if own else 0) * width
    copies = 4 if fsdp > 1 and platform != "gpu" else 2
    positions = rows * logits_chunk(model, train, sizes, platform) / sequence
    return {
        "activations": saved * model.layers + 2 * vectors,
        "working layer": every + tokens * dots * width + copies * layer / tensor * width,
        "logits": 2 * 4.0 * positions * model.V / tensor,
    }
