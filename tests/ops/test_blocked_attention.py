"""Attention in blocks equals the plain formula, and its memory grows with the length alone."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops.attention import dispatch
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.cpu import blocked_attention as blocked
from jaxgen.ops.masks import AttentionMask, cross_mask, make_mask
from jaxgen.ops.random import DropoutRng

B, T, N, H = 2, 19, 4, 6
SEGMENTS = jnp.asarray(np.where(np.arange(T) < [[7], [12]], 1, 2), jnp.int32)
MEMORY = jnp.asarray(np.where(np.arange(13) < [[9], [13]], 1, 0), jnp.int32)


def mask_of(direction="back", window=None, segments=None, order="running"):
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    words = {"direction": direction, "window": window, "order": order, "prefix": None}
    return make_mask(positions, positions, **words, query_segments=segments, key_segments=segments)


def make_args(mask: AttentionMask, *, kv_heads=N, keys=T, dtype="float32", drop=None, values=H):
    rng = np.random.default_rng(0)
    shapes = [(B, T, N, H), (B, keys, kv_heads, H), (B, keys, kv_heads, values)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return AttentionArgs(q, k, v, mask, 0.3, None, None, drop)


CASES = {
    "causal": lambda: make_args(mask_of()),
    "documents, grouped heads": lambda: make_args(mask_of(segments=SEGMENTS), kv_heads=2),
    "documents, grouped heads, dropout in rows 2 and 3 of 5": lambda: make_args(
        mask_of(segments=SEGMENTS), kv_heads=2, drop=DropoutRng(jax.random.key(5), 0.7, 2, 5)
    ),
    "narrow values": lambda: make_args(mask_of(), kv_heads=1, values=3),
    "a window back": lambda: make_args(mask_of(window=3), kv_heads=1),
    "a window to both sides": lambda: make_args(mask_of("both", window=4, segments=SEGMENTS)),
    "positions of the caller's": lambda: make_args(mask_of(window=5, order="free")),
    "to another text": lambda: make_args(cross_mask(jnp.ones((B, T), jnp.int32), MEMORY), keys=13),
}


def value_and_grads(name, args):
    def loss(q, k, v):
        out = dispatch.KERNELS[name].attend(args._replace(q=q, k=k, v=v))
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args[:3])
    return out, *grads


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_attention_equal_plain_attention_in_values_and_gradients(name, monkeypatch):
    # Stretches of four and eight rows, four at a time, and three rows that are left over.
    for limit, value in (("STRETCHES", 3), ("NARROWEST", 2), ("WIDEST", 4)):
        monkeypatch.setattr(blocked, limit, value)
    args = CASES[name]()
    assert dispatch.choose(args, "cpu") == "blocked"
    for found, wanted in zip(
        value_and_grads("blocked", args), value_and_grads("plain", args), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("length", [T, 130])  # one stretch of rows, and three
@pytest.mark.parametrize("kv_heads", [1, N])
def test_gradients_in_bfloat16_are_near_those_of_plain_attention(length, kv_heads, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "T", length)
    args = make_args(mask_of(), kv_heads=kv_heads, keys=length, dtype="bfloat16")
    for found, wanted in zip(
        value_and_grads("blocked", args), value_and_grads("plain", args), strict=True
    ):
        wanted = np.asarray(wanted, np.float32)
        near = 0.03 * np.abs(wanted).max()
        np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=near)


def test_rows_stop_at_the_last_key_that_they_may_see():
    def spans(mask, keys=1024):
        return [(s.begin, s.end, s.first, s.last) for s in blocked.stretches(mask, 512, keys)]

    assert spans(mask_of())[:2] == [(0, 64, 0, 64), (64, 128, 0, 128)]
    assert spans(mask_of(window=10))[-1] == (448, 512, 439, 512)
    assert spans(mask_of("both", window=10))[1] == (64, 128, 55, 137)
    assert spans(mask_of(order="free"))[0] == (0, 128, 0, 1024)
    assert spans(mask_of("both"))[0] == (0, 128, 0, 1024)
    long = blocked.stretches(mask_of(), 4096 + 130, 4096 + 130)
    assert max(s.rows for s in long) == blocked.WIDEST and long[-1].end == 4096 + 130
    assert [s.begin for s in long[1:]] == [s.end for s in long[:-1]]
    assert all((s.end - s.begin) % s.rows == 0 for s in long)


def test_memory_of_attention_grows_with_the_length_and_not_with_its_square(monkeypatch):
    monkeypatch.setattr(blocked, "STRETCHES", 2)

    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)

        def loss(x, weights):
            words = {"direction": "back", "window": None, "order": "running", "prefix": None}
            mask = make_mask(jnp.arange(length)[None], jnp.arange(length)[None], **words,
                         query_segments=None, key_segments=None)  # fmt: skip

            # JAX takes what is alike in all layers, as masks are, out of a scan.
            def layer(x, weight):
                args = AttentionArgs(x * weight, x, x, mask, 0.3, None, None, None)
                return blocked.attend(args), None

            return jnp.sum(jax.lax.scan(layer, x, weights)[0])

        weights = jax.ShapeDtypeStruct((2,), jnp.float32)
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(shape, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 5 * temporaries(1024)
