"""Secure aggregation, simulated: integers beneath pairwise masks that cancel in their sum.

Bonawitz et al. 2017. Each pair of clients agrees on a mask that one adds and the other subtracts,
modulo 2^32, so that a part alone says nothing, and the sum is exact. A client that is lost after
the others have masked leaves masks that don't cancel: each client has dealt shares of its secret
(Shamir 1979) to all, of which more than half bring it back. Agreement on keys is simulated by a
product in a field of 16 bits: what is sent and computed is that of the protocol, its safety isn't.
"""

from __future__ import annotations

from math import floor, log2
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, UInt32

PRIME = 65521  # products of two numbers below it fit into uint32
LIMBS = 4  # numbers of a secret, of 16 bits each: those of a key


def secure_total(parts: Any, arrived: Bool[Array, "C"], key: PRNGKeyArray, limit: float) -> Any:
    """Return the sum of the parts that have arrived, rounded to fixed point, from masked ones.

    Where half of the clients or more are lost, it can't be unmasked, and is zero.

    Args:
        parts: a tree of [C, ...], a part of each client. arrived: which are not lost.
        key: of the clients' secrets in this round.
        limit: largest number of a part; larger ones are cut. The sum is exact in steps of
            C * limit / 2^31 or less.
    """
    leaves, structure = jax.tree.flatten(parts)
    count = len(arrived)
    flat = jnp.concatenate([x.reshape(count, -1) for x in leaves], axis=1)
    scale = 2.0 ** floor(log2((2**31 - 1) / (count * limit)))
    words = jnp.round(jnp.clip(flat, -limit, limit) * scale).astype(jnp.int32)
    secrets = jax.random.randint(key, (count, LIMBS), 1, PRIME).astype(jnp.uint32)
    others = ~jnp.eye(count, dtype=bool)
    sent = words.astype(jnp.uint32) + masks(secrets, secrets, others, flat.shape[1])
    received = jnp.sum(jnp.where(arrived[:, None], sent, 0), axis=0, dtype=jnp.uint32)
    shares = deal_shares(secrets, jax.random.fold_in(key, 1))
    recovered = recover(shares, arrived)
    left = arrived[:, None] & ~arrived[None, :]
    extra = jnp.sum(masks(secrets, recovered, left, flat.shape[1]), axis=0, dtype=jnp.uint32)
    enough = jnp.sum(arrived) >= threshold(count)
    total = jnp.where(enough, (received - extra).astype(jnp.int32), 0) / jnp.float32(scale)
    sizes = [x.size // count for x in leaves]
    pieces = jnp.split(total, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
    return structure.unflatten(
        [p.reshape(x.shape[1:]) for p, x in zip(pieces, leaves, strict=True)]
    )


def threshold(count: int) -> int:
    """Return how many clients must arrive for the secrets of the others to be brought back."""
    return count // 2 + 1


def masks(
    own: UInt32[Array, "C S"],
    others: UInt32[Array, "C S"],
    pairs: Bool[Array, "C C"],
    size: int,
) -> UInt32[Array, "C P"]:
    """Return the sum of each client's masks with the others that `pairs` names, modulo 2^32.

    own, others: secrets of the clients, as themselves and as their partners.
    """
    count = len(own)

    def of(i: Array) -> Array:
        def add(j: Array, total: Array) -> Array:
            def masked(total: Array) -> Array:
                agreed = (own[i] * others[j]) % PRIME
                halves = agreed[:2] | (agreed[2:] << 16)
                key = jax.random.wrap_key_data(halves, impl="threefry2x32")
                bits = jax.random.bits(key, (size,), jnp.uint32)
                return total + jnp.where(j > i, bits, jnp.uint32(0) - bits)

            return jax.lax.cond(pairs[i, j], masked, lambda total: total, total)

        return jax.lax.fori_loop(0, count, add, jnp.zeros(size, jnp.uint32))

    return jax.lax.map(of, jnp.arange(count))


def deal_shares(secrets: UInt32[Array, "C S"], key: PRNGKeyArray) -> UInt32[Array, "C C S"]:
    """Return, for each client, the share of each client's secret: [holder, owner, limb]."""
    count = len(secrets)
    degree = threshold(count) - 1
    numbers = jax.random.randint(key, (degree, *secrets.shape), 0, PRIME).astype(jnp.uint32)
    at = jnp.arange(1, count + 1, dtype=jnp.uint32)[:, None, None]

    def horner(value: Array, coefficients: Array) -> tuple[Array, None]:
        return (value * at + coefficients) % PRIME, None

    begun = jnp.zeros((count, *secrets.shape), jnp.uint32)
    return jax.lax.scan(horner, begun, jnp.concatenate([numbers, secrets[None]]))[0]


def recover(shares: UInt32[Array, "C C S"], arrived: Bool[Array, "C"]) -> UInt32[Array, "C S"]:
    """Return the secrets, from the shares of the first clients that have arrived."""
    needed = threshold(len(arrived))
    holders = jnp.argsort(~arrived, stable=True)[:needed]
    at = (holders + 1).astype(jnp.uint32)
    # Lagrange's polynomials at 0: the product over the others of x / (x - own).
    apart = (at[None, :] + PRIME - at[:, None]) % PRIME
    ratios = (at[None, :] * _inverse(jnp.where(apart == 0, 1, apart))) % PRIME
    ratios = jnp.where(jnp.eye(needed, dtype=bool), 1, ratios).astype(jnp.uint32)
    product = lambda total, column: (total * column % PRIME, None)  # noqa: E731
    weights = jax.lax.scan(product, jnp.ones(needed, jnp.uint32), ratios.T)[0]

    def add(total: Array, held: tuple[Array, Array]) -> tuple[Array, None]:
        return (total + held[0] * held[1]) % PRIME, None

    begun = jnp.zeros(shares.shape[1:], jnp.uint32)
    return jax.lax.scan(add, begun, (weights, shares[holders]))[0]


def _inverse(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return 1 / x modulo the prime: x^(prime - 2)."""
    result, power, exponent = jnp.ones_like(x), x, PRIME - 2
    while exponent:
        if exponent & 1:
            result = result * power % PRIME
        power, exponent = power * power % PRIME, exponent >> 1
    return result
