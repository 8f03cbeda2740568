"""The key/value cache: an immutable value that also holds the length of each row.

Layouts: contiguous keeps every token; ring keeps, of layers with a sliding window, the last
`window` tokens, so that it does not grow with the text. Query heads that share a key head (Ainslie
et al. 2023) share its slots: a group is stored once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgen.config_groups import Delta
from jaxgen.errors import ConfigError
from jaxgen.export import Size
from jaxgen.mesh import constrain
from jaxgen.ops import kv_buffer
from jaxgen.ops.kv_buffer import Counts, KVBuffer, Sizes, Store
from jaxgen.ops.unrolled import UnrolledLayers
from jaxgen.pytree import register_dataclass

Layout = Literal["contiguous", "ring"]
NO_WAY_BACK = "layers with mixer=delta keep a state that can't go back to earlier tokens"
NEVER = np.iinfo(np.int32).max // 2  # the position of an empty slot: after every query


@register_dataclass
@dataclass(frozen=True)
class CrossKeys:
    """Cross-attention keys and values of all layers, and the segments of the encoder's memory."""

    k: Any  # Float[Array, "L B K S H"] | UnrolledLayers
    v: Any  # Float[Array, "L B K S H"] | UnrolledLayers
    segments: Any  # Int[Array, "B S"]


@register_dataclass
@dataclass(frozen=True)
class DeltaState:
    """What layers of the gated delta rule keep of a row, however long it is.

    inputs: of the convolution, those of the last tokens. matrix: of each head, in float32.
    """

    inputs: Any  # Float[Array, "L B C P"] | UnrolledLayers
    matrix: Any  # Float[Array, "L B K G H W"] | UnrolledLayers


@register_dataclass
@dataclass(frozen=True)
class Branches:
    """n beams of each of B rows (R = B * n) that share one row's slots, so beams copy no keys.

    A row's first `root` slots belong to all of its beams; every step then appends n slots, one for
    each beam. `ancestors` marks the slots that a beam descends from.
    """

    root: Any  # Int[Array, "B"]
    ancestors: Any  # Bool[Array, "R S"]


@register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers.

    full: the buffer of layers that keep every token: position p of a row is in slot p, so that a
    row's numbers do not depend on the lengths of its neighbours. Slots from `length` on hold
    garbage that no query may see. sliding: the buffer of local layers, if they have one.
    is_ring: whether that forgets: position p is in slot p mod the number of slots; else it is as
    full is, and apart because heads of local layers have other sizes.
    num_valid: number of the next tokens of each row that are not padding; None: all.
    slack: slots of a ring beyond the window, so that its last tokens can be rewound.
    branches: the beams of each row; None: rows are not split.
    state: of layers that keep no tokens, if there are any; it can't be rewound.
    """

    full: KVBuffer | None
    sliding: KVBuffer | None
    length: Any  # Int[Array, "B"]
    cross: CrossKeys | None = None
    num_valid: Any = None  # Int[Array, "B"] | None
    branches: Branches | None = None
    state: DeltaState | None = None
    slack: int = field(default=0, metadata={"static": True})
    is_ring: bool = field(default=True, metadata={"static": True})

    @property
    def capacity(self) -> Size | None:
        """Return the tokens of a row; None if no layer keeps them all: then it has no end."""
        return None if self.full is None else self.full.count

    @property
    def max_rewind(self) -> int | None:
        """Return how many tokens `rewind` can remove; None: all of them."""
        if self.state is not None:
            return 0
        return self.slack + 1 if self.forgets(window=True) else None

    def forgets(self, *, window: bool) -> bool:
        """Return whether layers with a window, or without, keep no more than the last tokens."""
        return window and self.sliding is not None and self.is_ring

    @property
    def is_unrolled(self) -> bool:
        """Return whether each step of layers has arrays of its own."""
        arrays = jax.tree.leaves(
            (self.full, self.sliding, self.state),
            is_leaf=lambda node: isinstance(node, UnrolledLayers),
        )
        return any(isinstance(node, UnrolledLayers) for node in arrays)

    def step(self, index: int) -> Cache:
        """Return the cache of one step's layers, numbered from 0."""
        return self._layers(lambda arrays: arrays.steps[index])

    def after(self, index: int, step: Cache) -> Cache:
        """Return the cache with that of one step's layers in its place."""

        def put(arrays: UnrolledLayers, new: Array) -> UnrolledLayers:
            return UnrolledLayers((*arrays.steps[:index], new, *arrays.steps[index + 1 :]))

        return self._layers(put, step)

    def _layers(self, change: Callable[..., Any], *others: Cache) -> Cache:
        def arrays(cache: Cache) -> tuple[Any, ...]:
            cross = None if cache.cross is None else (cache.cross.k, cache.cross.v)
            return cache.full, cache.sliding, cache.state, cross

        is_leaf = lambda node: isinstance(node, UnrolledLayers)  # noqa: E731
        parts = jax.tree.map(change, *map(arrays, (self, *others)), is_leaf=is_leaf)
        full, sliding, state, cross = parts
        if self.cross is not None:
            cross = replace(self.cross, k=cross[0], v=cross[1])
        return replace(self, full=full, sliding=sliding, state=state, cross=cross)

    def with_valid_lengths(self, num_valid: Int[Array, "B"]) -> Cache:
        """Return the cache for a padded input with `num_valid` real tokens in each row.

        A ring needs it: padding would overwrite tokens that are still in the window.
        """
        return replace(self, num_valid=num_valid)

    def rewind(self, length: Int[Array, "B"]) -> Cache:
        """Return the cache as it was when each row held `length` tokens.

        The caller must not rewind a ring by more than `max_rewind` tokens. Raises ConfigError with
        a state, which holds all tokens as one.
        """
        if self.state is not None:
            raise ConfigError(f"{NO_WAY_BACK}; use a method that takes no token back")
        return replace(self, length=length)

    @property
    def can_branch(self) -> bool:
        """Whether all layers keep every token."""
        return not self.forgets(window=True) and self.state is None

    def branch(self) -> Cache:
        """Return the cache that `take` splits into beams without copying a key.

        The first `take` repeats every row n times, the copies of a row adjacent. Every token of n
        beams takes n slots of the row. Rings cannot branch: they hold the last tokens only.
        """
        assert self.can_branch
        ancestors = jnp.arange(self.capacity)[None] < self.length[:, None]
        return replace(self, branches=Branches(self.length, ancestors))

    def take(self, rows: Int[Array, "C"]) -> Cache:
        """Return the cache whose row i is row rows[i] of this one, as a beam search reorders.

        With branches, rows are beams, and each is taken from its own row of the batch.
        """
        if self.branches is not None:
            ancestors = self.branches.ancestors[rows]
            return replace(self, branches=replace(self.branches, ancestors=ancestors))
        cross = self.cross
        if cross is not None:
            k, v = jax.tree.map(lambda x: x[:, rows], (cross.k, cross.v))
            cross = CrossKeys(k, v, cross.segments[rows])
        full, sliding, state = (
            jax.tree.map(lambda x: x[:, rows], one) for one in (self.full, self.sliding, self.state)
        )
        num_valid = None if self.num_valid is None else self.num_valid[rows]
        return replace(
            self,
            full=full,
            sliding=sliding,
            state=state,
            length=self.length[rows],
            cross=cross,
            num_valid=num_valid,
        )

    def where(self, rows: Bool[Array, "B"], other: Cache) -> Cache:
        """Return this cache's rows where `rows` is True, and those of `other`, of one shape."""

        def choose(one: Array, two: Array) -> Array:
            after = one.ndim - (2 if one.ndim > 3 else 1)  # layers come before rows
            return jnp.where(rows.reshape(-1, *[1] * after), one, two)

        return jax.tree.map(choose, self, other)


def empty(
    sizes: Sizes,
    *,
    full: tuple[Counts, Size],
    sliding: tuple[Counts, Size] = (0, 0),
    slack: int = 0,
    sliding_sizes: Sizes | None = None,
    is_ring: bool = True,
    store: Store = "plain",
    cross: tuple[Counts, Size] | None = None,
    state: tuple[Counts, Delta] | None = None,
) -> Cache:
    """Return a cache that holds nothing yet.

    full, sliding, cross: (layers, slots of a row) of each part; `slack` slots are added to sliding,
    whose heads may have sizes of their own; cross is for the keys of an encoder's output, in models
    that read one. state: (layers, settings) of the gated delta rule. Layers are so many in one
    array, or, for an unrolled cache, as many as each step has.
    """
    memory = None
    if cross is not None:
        k, v = kv_buffer.zeros(sizes, *cross, sizes.dtype)
        # Segment 0 is padding: until the memory is written, nothing of it can be seen.
        memory = CrossKeys(k, v, jnp.zeros((sizes.batch, cross[1]), jnp.int32))
    parts = ((sizes, *full), (sliding_sizes or sizes, sliding[0], sliding[1] + slack))
    buffers = (kv_buffer.empty(*part, store) for part in parts)
    return Cache(
        *buffers,
        length=jnp.zeros(sizes.batch, jnp.int32),
        cross=memory,
        state=None if state is None else _empty_state(sizes.batch, *state, sizes.dtype),
        slack=slack,
        is_ring=is_ring,
    )


def _empty_state(batch: Size, layers: Counts, delta: Delta, dtype: str) -> DeltaState | None:
    """Return the state of layers that have read nothing; None without layers."""
    if not (layers if isinstance(layers, int) else sum(layers)):
        return None
    heads = (delta.key_heads, delta.value_heads // delta.key_heads)

    def of(layers: Counts, letters: str, dtype: str, *shape: int) -> Any:
        if not isinstance(layers, int):
            return UnrolledLayers(tuple(of(n, letters, dtype, *shape) for n in layers))
        return constrain(jnp.zeros((layers, batch, *shape), dtype), letters)

    return DeltaState(
        of(layers, "LBKW", dtype, delta.channels, delta.window - 1),
        of(layers, "LBKGHW", "float32", *heads, delta.key_width, delta.value_width),
    )


def read_state(
    cache: Cache | None, layer: Any, delta: Delta, batch: Size, dtype: Any
) -> tuple[Float[Array, "B C P"], Float[Array, "B K G H W"]]:
    """Return the inputs and matrices of one layer; without a cache those of no tokens."""
    if cache is None:
        empty = _empty_state(batch, 1, delta, str(dtype))
        assert empty is not None
        return empty.inputs[0], empty.matrix[0]
    assert cache.state is not None
    inputs, matrix = (
        kv_buffer.layer_of(x, layer) for x in (cache.state.inputs, cache.state.matrix)
    )
    return inputs, matrix


def write_state(cache: Cache, layer: Any, inputs: Array, matrix: Array) -> Cache:
    """Return the cache with the state of one layer replaced."""
    assert cache.state is not None
    state = DeltaState(
        kv_buffer.put_layer(cache.state.inputs, inputs, layer),
        kv_buffer.put_layer(cache.state.matrix, matrix, layer),
    )
    return replace(cache, state=state)


def letters(cache: Any) -> Any:
    """Return the letters of the first axes of each array of a cache."""
    return jax.tree.map(lambda x: "LBKSH" if x.ndim > 3 else "B", cache)


def positions(cache: Cache, tokens: Size, *, window: bool) -> Int[Array, "#B S"]:
    """Return the positions of the keys that `extend` will give a layer with a window or without."""
    if cache.branches is not None:
        return _generation(cache.branches, jnp.arange(cache.capacity)[None], tokens)
    if not cache.forgets(window=window):
        return jnp.arange(cache.capacity)[None]
    assert cache.sliding is not None
    after = cache.length if tokens > 1 else cache.length + num_valid(cache, tokens)
    size = cache.sliding.count
    last = after[:, None] - 1
    held = (
        last - (last - jnp.arange(size)[None]) % size
    )  # the latest position that belongs in a slot
    held = jnp.where(held >= 0, held, NEVER)
    if tokens == 1:
        return held
    return jnp.concatenate([held, cache.length[:, None] + jnp.arange(tokens)[None]], axis=1)


def upcoming(cache: Cache, tokens: Size) -> Int[Array, "B T"]:
    """Return the positions of the next T tokens of each row; those of branches are the same."""
    slots = cache.length[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None]
    return slots if cache.branches is None else _generation(cache.branches, slots, tokens)


def _generation(branches: Branches, slots: Int[Array, "#B S"], tokens: Size) -> Int[Array, "B S"]:
    """Return the positions of slots that take `tokens` branches at a time after the root."""
    root = branches.root[:, None]
    return jnp.where(slots < root, slots, root + (slots - root) // tokens)


def ancestors(cache: Cache, tokens: Size) -> Bool[Array, "B T S"] | None:
    """Return True for the slots of each branch's ancestors, and of its own next token.

    None without branches.
    """
    if cache.branches is None:
        return None
    rows = cache.length.shape[0]
    assert cache.branches.ancestors.shape[0] == rows * tokens, (
        "each branch reads one token at a time"
    )
    own = cache.length[:, None] + jnp.arange(tokens)[None]
    mine = jnp.arange(cache.capacity)[None, None] == own[..., None]
    return cache.branches.ancestors.reshape(rows, tokens, -1) | mine


def by_row(cache: Cache, tokens: Int[Array, "R"]) -> Int[Array, "B T"]:
    """Return the next token of each row, or of each of its branches, as a model reads them."""
    return tokens.reshape(cache.length.shape[0], -1)


def extend(
    cache: Cache,
    layer: Int[Array, ""] | int,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K W"],
    *,
    window: bool,
) -> tuple[Cache, Float[Array, "B S K H"], Float[Array, "B S K W"]]:
    """Return (cache with T new tokens of one layer, the keys and values that they may see).

    layer: its index in its buffer, which is that of the layers with a window if `window`. The
    caller must ensure that length + T fits the capacity: writes past the end are dropped silently.
    """
    if not cache.forgets(window=window):
        part = "full" if cache.sliding is None or not window else "sliding"
        buffer = getattr(cache, part)
        assert buffer is not None
        buffer = kv_buffer.write(buffer, layer, k, v, cache.length)
        return replace(cache, **{part: buffer}), *kv_buffer.read(buffer, layer, k.dtype)
    old = cache.sliding
    assert old is not None
    sliding = kv_buffer.write_ring(old, layer, k, v, cache.length, num_valid(cache, k.shape[1]))
    cache = replace(cache, sliding=sliding)
    if k.shape[1] == 1:
        return cache, *kv_buffer.read(sliding, layer, k.dtype)
    # Several tokens would overwrite keys that the first of them still see: they follow the ring.
    pairs = zip(
        kv_buffer.read(old, layer, k.dtype), kv_buffer.round_trip(sliding, k, v), strict=True
    )
    keys, values = (jnp.concatenate(pair, axis=1) for pair in pairs)
    return cache, keys, values


def num_valid(cache: Cache, tokens: Size) -> Int[Array, "B"]:
    """Return how many of the next T tokens of each row are not padding."""
    return jnp.full_like(cache.length, tokens) if cache.num_valid is None else cache.num_valid


def begin_cross(cache: Cache, segments: Int[Array, "B S"]) -> Cache:
    """Return the cache with the memory's segments, before layers write its keys; 0 is padding."""
    assert cache.cross is not None
    return replace(cache, cross=replace(cache.cross, segments=segments))


def write_cross(
    cache: Cache,
    layer: Int[Array, ""] | int,
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
) -> Cache:
    """Return the cache with one layer's keys and values of the memory."""
    assert cache.cross is not None

    def put(stacked, new):
        return kv_buffer.put_layer(stacked, new.swapaxes(1, 2).astype(stacked.dtype), layer)

    cross = replace(cache.cross, k=put(cache.cross.k, k), v=put(cache.cross.v, v))
    return replace(cache, cross=cross)


def read_cross(
    cache: Cache, layer: Int[Array, ""] | int
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Return one layer's keys and values of the memory."""
    assert cache.cross is not None
    k, v = (kv_buffer.layer_of(x, layer) for x in (cache.cross.k, cache.cross.v))
    return k.swapaxes(1, 2), v.swapaxes(1, 2)


def advance(cache: Cache, tokens: Size) -> Cache:
    """Return the cache with every row longer, by `tokens` or by the number of valid ones."""
    slots = ancestors(cache, tokens)
    if slots is not None and cache.branches is not None:
        branches = replace(cache.branches, ancestors=slots.reshape(cache.branches.ancestors.shape))
        cache = replace(cache, branches=branches)
    return replace(cache, length=cache.length + num_valid(cache, tokens), num_valid=None)
