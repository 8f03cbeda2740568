"""Updates in float32 of parameters that are kept in fewer bits.

Rounded to bfloat16, a weight of 1 takes no step below 1/256, and the second moment of Adam never
falls. So the optimizer sees float32: gradients, its own state, and a copy of the parameters that it
updates (Micikevicius et al. 2018); what the model computes with is that copy, rounded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Master(NamedTuple):
    """State of an optimizer of narrow parameters: their float32 copy, and what it keeps of that."""

    params: Any
    inner: Any


class Float32Updates(optax.GradientTransformationExtraArgs):
    """An optimizer that does so already, as `in_float32` returns it."""


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer, which updates a float32 copy where parameters are narrower.

    With float32 parameters it does what it did before. `update` takes the extra arguments of Optax
    (value, grad, value_fn), which an optimizer that reads none ignores.
    """
    if isinstance(optimizer, Float32Updates):
        return optimizer
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        if not _are_narrow(params):
            return inner.init(params)
        # A copy also where a leaf is float32 already: donating one buffer twice is an error.
        master = jax.tree.map(lambda p: jnp.array(p, wide(p.dtype)), params)
        return Master(master, inner.init(master))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if not isinstance(state, Master):
            return inner.update(updates, state, params, **extra)
        updates, inner_state = inner.update(updates, state.inner, state.params, **extra)
        master: Any = optax.apply_updates(state.params, updates)
        steps = jax.tree.map(lambda new, old: new - old.astype(new.dtype), master, params)
        return steps, Master(master, inner_state)

    return Float32Updates(init, update)


def widened(tree: Any) -> Any:
    """Return a tree of floats, those narrower than float32 as float32."""
    return jax.tree.map(lambda x: x.astype(wide(x.dtype)), tree)


def wide(dtype: Any) -> Any:
    """Return the dtype in which numbers of a dtype are summed and updated."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _are_narrow(params: Any) -> bool:
    return any(wide(leaf.dtype) != leaf.dtype for leaf in jax.tree.leaves(params))
