"""Norms of each row's weight gradients, without the gradients (Li et al. 2022; Goodfellow 2015).

A weight gets an array of zeros [B] beside it, whose cotangent in a backward pass is the squared
norm of each row's part of the weight's gradient. The same backward pass, run again with rescaled
cotangents of the rows, gives the sum of their clipped gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.ops.contract import PerRow, contract, lookup
from jaxgen.pytree import register_dataclass

# Parameters that the layers read once a row: products, tables, and vectors beside [B, T, ...].
_MATRICES = r"(layers(/\d+)?|rest/\d+)/(attn/[qkvo]|feed/(up|gate|down))(/[ab])?"
_VECTORS = (
    r"final_norm/(scale|bias)|(layers(/\d+)?|rest/\d+)/"
    r"((attn|feed)\w*_norm/(scale|bias)|attn/[qk]_norm/scale|(attn|feed)/\w+_bias)"
)
_TABLES = r"embed/(tokens|positions)|unembed/tokens"
TOKENS, UNTIED = "embed/tokens", "unembed/tokens"
POSITIONS = ("learned", "rope", "none", "sinusoid", "sinusoid_t2t")


@register_dataclass
@dataclass(frozen=True)
class Ghost:
    """A weight, or a table, with what its backward pass leaves beside its gradient.

    squares: zeros [B], whose cotangent is the squared norm of each row's gradient. tap: zeros
    [B, T, D] that are added to the rows of a table, or None.
    """

    weight: Any
    squares: Any
    tap: Any = None
    axes: str = field(default="VD", metadata={"static": True})

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight)."""
        return _contract(equation, dtype, x, self.weight, self.squares)

    def lookup(self, ids: Int[Array, "B T"], dtype: str) -> Array:
        """Return rows of the table."""
        y: Any = _lookup(self.axes, dtype, ids, self.weight, self.squares)
        return y if self.tap is None else y + self.tap.astype(y.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _contract(equation: str, dtype: str, x: Array, w: Array, squares: Array) -> Array:
    return contract(equation, x, w, dtype=dtype)


def _contract_forward(equation, dtype, x, w, squares):
    return contract(equation, x, w, dtype=dtype), (x, w)


def _contract_backward(equation, dtype, saved, grad):
    pull = jax.vjp(partial(contract, equation, dtype=dtype), *saved)[1]
    return *pull(grad), row_squares(equation, saved[0], grad)


_contract.defvjp(_contract_forward, _contract_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lookup(axes: str, dtype: str, ids: Array, table: Array, squares: Array) -> Array:
    return lookup(table, ids, dtype=dtype, axes=axes)


def _lookup_forward(axes, dtype, ids, table, squares):
    return lookup(table, ids, dtype=dtype, axes=axes), (ids, table)


def _lookup_backward(axes, dtype, saved, grad):
    ids, table = saved
    pull = jax.vjp(lambda table: lookup(table, ids, dtype=dtype, axes=axes), table)[1]
    same = ids[:, :, None] == ids[:, None, :]
    grams = jnp.einsum("btd,bsd->bts", grad, grad, preferred_element_type=jnp.float32)
    return None, *pull(grad), jnp.sum(jnp.where(same, grams, 0.0), axis=(1, 2))


_lookup.defvjp(_lookup_forward, _lookup_backward)


def row_squares(
    equation: str, x: Float[Array, "..."], grad: Float[Array, "..."]
) -> Float[Array, "B"]:
    """Return the squared norm of each row's gradient of w in einsum(equation, x, w).

    Args:
        equation: as `contract` takes it; its first letter is of the rows.
        x: what is multiplied with the weight. grad: of the result.
    """
    inputs, _, out = equation.partition("->")
    left, right = inputs.split(",")
    inner = [letter for letter in left if letter in right]
    places = [letter for letter in left if letter not in right]
    outer = [letter for letter in right if letter not in inner]
    assert places[0] == left[0] and [*places, *outer] == list(out), equation
    assert [*places, *inner] == list(left), equation
    rows, depth = x.shape[0], prod(x.shape[1 : len(places)])
    return pair_squares(x.reshape(rows, depth, -1), grad.reshape(rows, depth, -1))


def pair_squares(x: Float[Array, "B T I"], grad: Float[Array, "B T O"]) -> Float[Array, "B"]:
    """Return the squared norm of x^T grad of each row, in the cheaper of two ways."""
    places, inner, outer = x.shape[1], x.shape[2], grad.shape[2]
    wide = {"preferred_element_type": jnp.float32}
    if places * (inner + outer) < inner * outer:
        grams = (jnp.einsum("bti,bsi->bts", one, one, **wide) for one in (x, grad))
        return jnp.sum(next(grams) * next(grams), axis=(1, 2))
    own = jnp.einsum("bti,bto->bio", x, grad, **wide)
    return jnp.sum(own * own, axis=(1, 2))


def supports(config: ModelConfig, paths: Mapping[str, Any]) -> bool:
    """Return whether every trained parameter is read once a row, in a way that is known here."""
    if config.topology != "decoder" or config.head != "lm" or config.positions not in POSITIONS:
        return False
    if config.qk_norm not in ("none", "unit", "head") or config.layer_weights != "own":
        return False
    if config.output_bias != "none" or config.embed.width is not None:
        return False
    known = re.compile(f"({_MATRICES}|{_VECTORS}|{_TABLES})")
    return not config.experts.number and all(known.fullmatch(path) for path in paths)


def wrap(
    params: Any, letters: Mapping[str, str], rows: int, tap: Any, trained: Callable[[str], bool]
) -> Any:
    """Return parameters of which each leaves the gradient, or its norm, of each row.

    A matrix or table becomes a Ghost, a vector a copy for each row. What isn't
    trained stays as it is. letters: of the axes, by path; tap: zeros for the tokens' table.
    """

    def one(path: str, leaf: Any) -> Any:
        if not trained(path):
            return jax.lax.stop_gradient(leaf)
        depth = leaf.shape[:1] if letters[path].startswith("L") else ()
        if re.fullmatch(_VECTORS, path):
            own = leaf.shape[len(depth) :]
            rank = (4 if letters[path].endswith("H") else 3) - 1 - len(own)
            shape = (*depth, 1, *(1 for _ in range(rank)), *own)
            copies = (*depth, rows, *shape[len(depth) + 1 :])
            return PerRow(jnp.broadcast_to(leaf.reshape(shape), copies))
        zeros = jnp.zeros((*depth, rows), jnp.float32)
        axes = letters[path].removeprefix("L")
        return Ghost(leaf, zeros, tap if path == TOKENS else None, axes)

    return tree.map_paths(one, params)


def squares_of(grads: Any, letters: Mapping[str, str], trained: Callable[[str], bool]) -> Any:
    """Return the squared norm [B] of each row's gradient, of the cotangent of what `wrap` made."""
    total: Any = 0.0
    for path, leaf in tree.flatten(grads).items():
        if not trained(path):
            continue
        if isinstance(leaf, Ghost):
            squares = leaf.squares
            total += squares.sum(axis=0) if squares.ndim == 2 else squares
        else:
            rows = int(letters[path].startswith("L"))
            wide = leaf.values.astype(jnp.float32)
            total += jnp.sum(wide * wide, axis=tuple(i for i in range(wide.ndim) if i != rows))
    return total


def unwrap(grads: Any, params: Any, letters: Mapping[str, str]) -> Any:
    """Return the gradient of the parameters, of the cotangent of what `wrap` made of them."""

    def one(path: str, param: Any, leaf: Any) -> Any:
        if isinstance(leaf, Ghost):
            return leaf.weight.astype(jnp.float32)
        if isinstance(leaf, PerRow):
            summed = leaf.values.astype(jnp.float32).sum(axis=int(letters[path].startswith("L")))
            return summed.reshape(param.shape)
        return jnp.zeros(param.shape, jnp.float32)  # isn't trained

    return tree.map_paths(one, params, grads)
