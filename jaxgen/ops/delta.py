"""The gated delta rule: attention whose memory of a text is one matrix a head (Yang et al. 2024).

S <- exp(decay) S; S <- S + k (beta (v - S^T k))^T; out = S^T q. Keys and queries have length 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgen.export import surely
from jaxgen.varying import scan

CHUNK = 64  # tokens whose updates are one triangular system
EPSILON = 1e-6

Queries = Float[Array, "B T K H"]
Values = Float[Array, "B T K G W"]
Gates = Float[Array, "B T K G"]
State = Float[Array, "B K G H W"]
Texts = Int[Array, "B T"]


def delta_rule(
    q: Queries, k: Queries, v: Values, decay: Gates, beta: Gates, state: State, texts: Texts
) -> tuple[Values, State]:
    """Return (out, the state after all tokens), computed in float32.

    G value heads share a key head. decay: logarithms, at most 0; beta: from 0 to 1; a token with
    both 0 changes nothing. texts: numbers of the texts of a row, from 0 on rising; the state
    belongs to text 0, and no token reads what another text wrote.
    """
    dtype = v.dtype
    q, k, v, decay, beta = (x.astype(jnp.float32) for x in (q, k, v, decay, beta))
    q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
    if surely(lambda: q.shape[1] == 1):
        first = (x[:, 0] for x in (q, k, v, decay, beta))
        out, state = _token(state, *first)
        return out[:, None].astype(dtype), state
    out, state = _chunks(q, k, v, decay, beta, state, texts)
    return out.astype(dtype), state


def _unit(x: Queries) -> Queries:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)


def _token(state, q, k, v, decay, beta):
    """One token [B, ...] of the rule, as it is written."""
    state = state * jnp.exp(decay)[..., None, None]
    known = jnp.einsum("BKGHW,BKH->BKGW", state, k)
    new = (v - known) * beta[..., None]
    state = state + k[:, :, None, :, None] * new[..., None, :]
    return jnp.einsum("BKGHW,BKH->BKGW", state, q), state


def _chunks(q, k, v, decay, beta, state, texts):
    """Chunks of tokens one after another, each by matrix products (Yang et al. 2024, section 3.3).

    What the tokens of a chunk write depends on what those before them wrote: a triangular system.
    """
    tokens = q.shape[1]
    size = min(CHUNK, tokens) if isinstance(tokens, int) else CHUNK
    count = -(-tokens // size)

    def cut(x: Array, mode: str = "constant") -> Array:
        widths = [(0, 0), (0, count * size - tokens), *[(0, 0)] * (x.ndim - 2)]
        x = jnp.pad(x, widths, mode=mode)
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    parts = (*(cut(x) for x in (q, k, v, decay, beta)), cut(texts, "edge"))
    (state, _), out = scan(_chunk, (state, jnp.zeros_like(texts[:, 0])), parts)
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * size, *out.shape[3:])[:, :tokens], state


def _chunk(carry, part):
    (state, before), (q, k, v, decay, beta, text) = carry, part
    v, decay, beta = (jnp.moveaxis(x, 1, 3) for x in (v, decay, beta))  # [B, K, G, C, ...]
    place = jnp.arange(text.shape[1])
    same = (text[:, :, None] == text[:, None, :]) & (place[:, None] >= place[None, :])
    # Summed text by text, so that no rounding of another's comes in.
    total = jnp.einsum("BIJ,BKGJ->BKGI", same.astype(decay.dtype), decay)
    # Decay from token j to token i, and from the state before the chunk; masked before exp, which
    # would overflow.
    pair = total[..., :, None] - total[..., None, :]
    pair = jnp.exp(jnp.where(same[:, None, None], pair, -jnp.inf))
    old = jnp.exp(total) * (text == before[:, None])[:, None, None]
    keys = jnp.einsum("BIKH,BJKH->BKIJ", k, k)[:, :, None] * pair * beta[..., None]
    reads = jnp.einsum("BKGI,BIKH->BKGIH", beta * old, k)
    both = jnp.concatenate([v * beta[..., None], reads], axis=-1)
    both = jax.scipy.linalg.solve_triangular(keys, both, lower=True, unit_diagonal=True)
    new, known = both[..., : v.shape[-1]], both[..., v.shape[-1] :]
    new = new - known @ state
    near = jnp.einsum("BIKH,BJKH->BKIJ", q, k)[:, :, None] * pair
    out = jnp.einsum("BKGI,BIKH,BKGHW->BKGIW", old, q, state) + near @ new
    state = state * old[..., -1][..., None, None]
    state = state + jnp.einsum("BKGJ,BJKH,BKGJW->BKGHW", pair[..., -1, :], k, new)
    return (state, text[:, -1]), jnp.moveaxis(out, 3, 1)


def causal_convolution(
    x: Float[Array, "B T C"],
    weight: Float[Array, "C W"],
    before: Float[Array, "B C P"],
    texts: Texts,
) -> Float[Array, "B T C"]:
    """Return each channel convolved with its own W weights, over a token and those before it.

    before: the P = W - 1 tokens before the first, of text 0. No token reads another text's.
    """
    width, tokens = weight.shape[1], x.shape[1]
    whole = jnp.concatenate([before.swapaxes(1, 2).astype(x.dtype), x], axis=1)
    number = jnp.pad(texts, ((0, 0), (width - 1, 0)))
    out = jnp.zeros_like(x)
    for i in range(width):
        seen = number[:, i : i + tokens] == texts
        out += jnp.where(seen[..., None], whole[:, i : i + tokens], 0) * weight[:, i].astype(
            x.dtype
        )
    return out


def last_inputs(
    x: Float[Array, "B T C"], before: Float[Array, "B C P"], num_valid: Int[Array, "B"]
) -> Float[Array, "B C P"]:
    """Return the `before` of the token after the first `num_valid` of each row."""
    whole = jnp.concatenate([before, x.swapaxes(1, 2).astype(before.dtype)], axis=2)
    at = num_valid[:, None] + jnp.arange(before.shape[2])[None]
    return jnp.take_along_axis(whole, at[:, None], axis=2)


def numbered(segments: Int[Array, "B T"] | None, like: Int[Array, "B T"]) -> Texts:
    """Return the number of each token's text, from 0 on; None: one text a row."""
    if segments is None:
        return jnp.zeros_like(like)
    begins = segments[:, 1:] != segments[:, :-1]
    return jnp.cumsum(jnp.pad(begins, ((0, 0), (1, 0))), axis=1, dtype=like.dtype)


def silenced(gates: Gates, valid: Bool[Array, "B T"]) -> Gates:
    """Return gates that are 0 where a token is padding."""
    return jnp.where(valid[..., None, None], gates, 0)
