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
from jaxgen.adapters.adapter import Adapter, attach, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api, serving
from jaxgen.ops.adapted import Adapted, layer_of
from jaxgen.pytree import register_dataclass

Params = dict[str, Any]
# What each kind needs beside the factors of a low rank, which are 0 where it has none.
KINDS = {"lora": (), "dora": ("gain",), "ia3": ("gain", "before")}


@register_dataclass
@dataclass(frozen=True)
class Bank:
    """Adapters of one model, in slots.

    Attributes:
        parts: by part and path. "a": [stack, slots, R, contracted axes]; "b", which scales are held
            in: [stack, slots, R, output axes]; "gain": [stack, slots, output axes]; "before":
            [stack, slots, contracted axes].
        capacity: slots, the empty one among them.
        rank: the largest that a slot holds.
    """

    parts: dict[str, dict[str, Array]]
    capacity: int = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})


def _nothing(part: str) -> float:
    """Return the number that changes nothing in a part."""
    return 0.0 if part in ("a", "b") else 1.0


def empty(
    config: ModelConfig,
    capacity: int,
    rank: int,
    targets: Sequence[str] = ("all-linear",),
    dtype: str = "float32",
    kinds: Sequence[str] = ("lora",),
) -> Bank:
    """Return a bank whose slots hold nothing.

    Args:
        config: of the model.
        capacity: slots for users, besides the empty one.
        rank: the largest of an adapter.
        targets: as of `AdapterSettings`: weights that an adapter may stand beside.
        dtype: of the numbers; bfloat16 takes half the memory.
        kinds: of adapters that a slot can hold, keys of `KINDS`.
    """
    known, slots = sites(config), capacity + 1
    parts: dict[str, dict[str, Array]] = {part: {} for part in ("a", "b")}
    parts |= {part: {} for kind in kinds for part in KINDS[kind]}
    for path in plan(AdapterSettings(kind="lora", targets=tuple(targets)), config).targets:
        site = known[path]
        inner, outer = site.sizes(site.inner), site.sizes(site.outer)
        shapes = {"a": (rank, *inner), "b": (rank, *outer), "gain": outer, "before": inner}
        for part, arrays in parts.items():
            arrays[path] = jnp.full((*site.stack, slots, *shapes[part]), _nothing(part), dtype)
    return Bank(parts, slots, rank)


def write(
    bank: Bank,
    config: ModelConfig,
    slot: int,
    adapter: Adapter | None,
    name: str,
    params: Params | None = None,
) -> Bank:
    """Return the bank, whose memory is taken over, with an adapter in a slot; None: nothing.

    params: of the model, stacked or as `serving.ready` returns them; DoRA alone reads them, for its
    magnitudes are relative to their weights. Raises ConfigError, naming the adapter, for one that
    no slot can hold.
    """
    if not 0 < slot < bank.capacity:
        raise ConfigError(f"slot={slot} must be from 1 to {bank.capacity - 1}")
    own: dict[str, np.ndarray] = {}
    if adapter is not None:
        _check(bank, config, adapter, name)
        own = _own(adapter, config, params)
    known = sites(config)
    rows: dict[str, dict[str, np.ndarray]] = {}
    for part, arrays in bank.parts.items():
        rows[part] = {}
        for path, held in arrays.items():
            axis = len(known[path].stack)
            row = np.full(held.shape[:axis] + held.shape[axis + 1 :], _nothing(part), np.float32)
            if (array := own.get(f"{path}/{part}")) is not None:
                row[tuple(map(slice, array.shape))] = array  # of a lower rank, perhaps
            rows[part][path] = row.astype(held.dtype)
    depths = tuple((path, len(known[path].stack)) for path in bank.parts["a"])
    return _write(bank, rows, np.int32(slot), depths)


def _own(adapter: Adapter, config: ModelConfig, params: Params | None) -> dict[str, np.ndarray]:
    """Return an adapter's arrays by path, scales in the second factors, gains for magnitudes."""
    own = {name: np.asarray(x) for name, x in tree.flatten(adapter.params or {}).items()}
    for path in adapter.ranks:
        scale, b = np.asarray(adapter.scale(path)), own[f"{path}/b"]
        own[f"{path}/b"] = b * scale.reshape(*scale.shape, *(1,) * (b.ndim - scale.ndim))
        own[f"{path}/a"] = np.moveaxis(own[f"{path}/a"], -1, scale.ndim)
    if adapter.kind == "dora":
        assert params is not None
        tuned = tree.flatten(attach(serving.stacked(params), adapter, config))
        own |= {f"{path}/gain": np.asarray(tuned[path].gain) for path in adapter.targets}
    return own


def _check(bank: Bank, config: ModelConfig, adapter: Adapter, name: str) -> None:
    if adapter.kind not in KINDS or adapter.saved:
        what = "parameters saved whole" if adapter.saved else f"kind={adapter.kind}"
        raise ConfigError(
            f"{name} has {what}, which rows of one batch can't have each for itself; open the "
            f"model with adapter= for that user alone"
        )
    if lost := [path for path in adapter.targets if path not in bank.parts["a"]]:
        raise ConfigError(
            f"{name} has an adapter at {lost[0]}, which the bank has no room for; open it with "
            f"targets that match that"
        )
    if missing := [part for part in KINDS[adapter.kind] if part not in bank.parts]:
        raise ConfigError(
            f"{name} has kind={adapter.kind}, but the bank was opened without {missing[0]}; open "
            f"the session again, now that the user is there"
        )
    if (rank := max((int(np.max(r)) for r in adapter.ranks.values()), default=0)) > bank.rank:
        raise ConfigError(
            f"{name} has rank {rank}, more than the rank={bank.rank} that the bank was opened with"
        )
    known, outputs = tree.flatten(api.axes(config)), set(adapter.targets) - set(adapter.inputs)
    scaled = sorted(path for path in outputs if f"{path}_bias" in known)
    if adapter.kind == "ia3" and scaled:
        raise ConfigError(
            f"{name} has kind=ia3 at {scaled[0]}, whose bias it scales as well, and rows of one "
            f"batch share that; open the model with adapter= for that user alone"
        )


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write(bank: Bank, rows: Any, slot: Any, depths: tuple[tuple[str, int], ...]) -> Bank:
    put = jax.lax.dynamic_update_index_in_dim
    parts = {
        part: {path: put(arrays[path], rows[part][path], slot, axis) for path, axis in depths}
        for part, arrays in bank.parts.items()
    }
    return Bank(parts, bank.capacity, bank.rank)


def is_empty(bank: Bank, config: ModelConfig, slot: int) -> bool:
    """Return whether a slot holds nothing of an adapter."""
    known = sites(config)
    rows = (
        jnp.take(x, jnp.asarray([slot]), axis=len(known[path].stack)) != _nothing(part)
        for part, arrays in bank.parts.items()
        for path, x in arrays.items()
    )
    return not any(bool(jnp.any(differs)) for differs in rows)


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
    known = sites(config)
    found: dict[str, Any] = {}
    for path in bank.parts["a"]:
        stack = known[path].stack
        own: dict[str, Any] = {
            part: jnp.take(arrays[path], slots, axis=len(stack), mode="clip")
            for part, arrays in bank.parts.items()
        }
        adapter = Adapted(**own, rows="each")
        if unrolled and path.startswith("layers/"):
            adapter = tuple(layer_of(adapter, layer) for layer in range(stack[0]))
        found[path] = adapter
    return found
