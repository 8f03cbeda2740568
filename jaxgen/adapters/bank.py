"""The adapters of many users in the same arrays: a batch mixes them, and none is compiled anew.

Each user has a slot. What a batch needs is gathered by the slots of its rows; a slot is written in
place. Slot 0 stays empty, for rows without an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen import tree
from jaxgen.adapters.adapter import Adapter, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.adapters.sites import Site, sites
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.ops.adapted import Adapted, layer_of
from jaxgen.pytree import register_dataclass

Params = dict[str, Any]


@register_dataclass
@dataclass(frozen=True)
class Bank:
    """Low-rank adapters of one model, in slots.

    Attributes:
        a: by path: [stack, slots, contracted axes, R]; scaled adapters are held in b.
        b: by path: [stack, slots, R, output axes].
        capacity: slots, the empty one among them.
        rank: the largest that a slot holds.
    """

    a: dict[str, Array]
    b: dict[str, Array]
    capacity: int = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})


def empty(
    config: ModelConfig,
    capacity: int,
    rank: int,
    targets: Sequence[str] = ("all-linear",),
    dtype: str = "float32",
) -> Bank:
    """Return a bank whose slots hold zeros.

    Args:
        config: of the model.
        capacity: slots for users, besides the empty one.
        rank: the largest of an adapter.
        targets: as of `AdapterSettings`: weights that an adapter may stand beside.
        dtype: of the numbers; bfloat16 takes half the memory.
    """
    known, slots = sites(config), capacity + 1
    a, b = {}, {}
    for path in plan(AdapterSettings(kind="lora", targets=tuple(targets)), config).targets:
        site = known[path]
        inner, outer = site.sizes(site.inner), site.sizes(site.outer)
        a[path] = jnp.zeros((*site.stack, slots, *inner, rank), dtype)
        b[path] = jnp.zeros((*site.stack, slots, rank, *outer), dtype)
    return Bank(a, b, slots, rank)


def write(bank: Bank, config: ModelConfig, slot: int, adapter: Adapter | None, name: str) -> Bank:
    """Return the bank, whose memory is taken over, with an adapter in a slot; None: zeros.

    Raises ConfigError, naming the adapter, for one that no slot can hold.
    """
    if not 0 < slot < bank.capacity:
        raise ConfigError(f"slot={slot} must be from 1 to {bank.capacity - 1}")
    if adapter is not None:
        _check(bank, adapter, name)
    known, flat = sites(config), tree.flatten((adapter and adapter.params) or {})
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for path, held in bank.a.items():
        site, dtype = known[path], held.dtype
        axis = len(site.stack)
        shapes = (x.shape[:axis] + x.shape[axis + 1 :] for x in (held, bank.b[path]))
        a, b = (np.zeros(shape, np.float32) for shape in shapes)
        if f"{path}/a" in flat and adapter is not None:
            own = np.asarray(flat[f"{path}/a"]), np.asarray(flat[f"{path}/b"])
            width, scale = own[0].shape[-1], np.asarray(adapter.scale(path))
            a[..., :width] = own[0]
            places = (slice(None),) * axis + (slice(width),)
            b[places] = own[1] * scale.reshape(*scale.shape, *(1,) * (b.ndim - scale.ndim))
        rows[path] = a.astype(dtype), b.astype(dtype)
    depths = tuple((path, len(known[path].stack)) for path in bank.a)
    return _write(bank, rows, np.int32(slot), depths)


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write(bank: Bank, rows: Any, slot: Any, depths: tuple[tuple[str, int], ...]) -> Bank:
    put = jax.lax.dynamic_update_index_in_dim
    a = {path: put(bank.a[path], rows[path][0], slot, axis) for path, axis in depths}
    b = {path: put(bank.b[path], rows[path][1], slot, axis) for path, axis in depths}
    return Bank(a, b, bank.capacity, bank.rank)


def _check(bank: Bank, adapter: Adapter, name: str) -> None:
    if adapter.kind != "lora" or adapter.saved:
        what = "parameters saved whole" if adapter.saved else f"kind={adapter.kind}"
        raise ConfigError(
            f"{name} has {what}, which rows of one batch can't have each for itself; merge it into "
            f"a model of its own"
        )
    if lost := [path for path in adapter.targets if path not in bank.a]:
        raise ConfigError(
            f"{name} has an adapter at {lost[0]}, which the bank has no room for; open it with "
            f"targets that match that"
        )
    if (rank := max(int(np.max(ranks)) for ranks in adapter.ranks.values())) > bank.rank:
        raise ConfigError(
            f"{name} has rank {rank}, more than the rank={bank.rank} that the bank was opened with"
        )


def is_zero(bank: Bank, config: ModelConfig, slot: int) -> bool:
    """Return whether a slot holds nothing but zeros."""
    known = sites(config)
    arrays = ((known[path], x) for side in (bank.a, bank.b) for path, x in side.items())
    return not any(bool(jnp.any(_at(x, site, slot))) for site, x in arrays)


def _at(x: Array, site: Site, slot: int) -> Array:
    return jnp.take(x, jnp.asarray([slot]), axis=len(site.stack))


def around(
    params: Params, bank: Bank, slots: Int[Array | np.ndarray, "B"], config: ModelConfig
) -> Params:
    """Return the parameters with an adapter of its own for each row of a batch.

    Args:
        params: of the model, stacked or as `serving.ready` returns them; they are not copied.
        bank: holds the adapters.
        slots: of each row; 0: none.
        config: of the model.
    """
    found = _gathered(bank, np.asarray(slots, np.int32), config, serving.is_unrolled(params))
    return serving.join(params, {path: (adapter,) for path, adapter in found.items()})


@partial(jax.jit, static_argnums=(2, 3))
def _gathered(bank: Bank, slots: Any, config: ModelConfig, unrolled: bool) -> dict[str, Any]:
    """Return the adapters of the rows by path; of unrolled layers, one for each layer."""
    known, ones = sites(config), jnp.ones(slots.shape[0], jnp.float32)
    found: dict[str, Any] = {}
    for path, held in bank.a.items():
        stack = known[path].stack
        a, b = (jnp.take(x, slots, axis=len(stack), mode="clip") for x in (held, bank.b[path]))
        scale = jnp.broadcast_to(ones, (*stack, *ones.shape))
        adapter = Adapted(None, a, b, scale, rows="each")
        if unrolled and path.startswith("layers/"):
            adapter = tuple(layer_of(adapter, layer) for layer in range(stack[0]))
        found[path] = adapter
    return found
