"""Hand-written backward passes that leave forward mode, vmap and second derivatives whole.

`jax.custom_vjp` forbids `jax.jvp`, and `jax.custom_derivatives.linear_call` cannot be vmapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from jaxgen.varying import vary_alike


class custom_vjp:  # noqa: N801 - the name and the look of JAX's decorator
    """A function with a hand-written backward pass; forward mode differentiates its body.

    As `jax.custom_vjp`, with two differences: the forward function returns only what the backward
    pass needs besides the arguments, and the backward function gets these as well.

        @partial(custom_vjp, nondiff_argnums=(0,))
        def power(n, x):
            return x**n

        def forward(n, x):
            return power.body(n, x), saved  # saved: any pytree of arrays; () for none

        def backward(n, args, saved, grad):  # args: (x,)
            return (grad * n * args[0] ** (n - 1),)  # one cotangent an argument

        power.defvjp(forward, backward)

    Arguments and results are pytrees; integers and booleans among them get None in the place of a
    cotangent, every floating argument an array: None there raises TypeError. Neither body nor
    backward may close over traced arrays. The backward pass is differentiated in its turn, for
    derivatives of any order. Where arguments must not be saved, or each result has a backward pass
    of its own, write a `jax.custom_jvp` whose tangents come from `linear_call`.
    """

    def __init__(self, body: Callable, nondiff_argnums: Sequence[int] = ()) -> None:
        """Wrap `body`; arguments at nondiff_argnums, the first ones, are static and hashable."""
        assert tuple(nondiff_argnums) == tuple(range(len(nondiff_argnums)))
        update_wrapper(self, body)
        self.body, self.num_static = body, len(nondiff_argnums)
        self._function = jax.custom_jvp(body, nondiff_argnums=tuple(nondiff_argnums))
        self._function.defjvp(self._jvp, symbolic_zeros=True)

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """Set forward(*args) -> (out, saved) and backward(*static, args, saved, grad)."""
        self.forward, self.backward = forward, backward

    def __call__(self, *args: Any) -> Any:
        """Return body(*args)."""
        static, args = args[: self.num_static], args[self.num_static :]
        return self._function(*static, *vary_alike(args))

    def _jvp(self, *rest: Any) -> tuple[Any, Any]:
        *static, args, tangents = rest
        out, saved = self.forward(*static, *args)
        leaves, tree = jax.tree.flatten(args)
        # Of the same structure as the arguments, up to what stands for a zero.
        known = tree.flatten_up_to(tangents)
        where = [i for i, t in enumerate(known) if _is_tangent(t)]

        def forward_mode(constants: Any, tangents: Any) -> Any:
            leaves = list(constants[0])

            def body(*inputs: Any) -> Any:
                for i, x in zip(where, inputs, strict=True):
                    leaves[i] = x
                return self.body(*static, *jax.tree.unflatten(tree, leaves))

            return jax.jvp(body, tuple(leaves[i] for i in where), tuple(tangents))[1]

        def backward_mode(constants: Any, grads: Any) -> Any:
            args = jax.tree.unflatten(tree, constants[0])
            pairs = zip(args, self.backward(*static, args, constants[1], grads), strict=True)
            results = [grad for pair in pairs for grad in _leaves_like(*pair)]
            if any(results[i] is None for i in where):
                raise TypeError(f"the backward pass of {self.body.__name__} drops a cotangent")
            return [results[i] for i in where]

        inputs = [known[i] for i in where]
        types = jax.tree.map(lambda x: jax.typeof(x).to_tangent_aval(), out)
        return out, _call(forward_mode, backward_mode, (leaves, saved), inputs, types)


def linear_call(forward: Callable, backward: Callable, residuals: Any, operands: Any) -> Any:
    """Return forward(residuals, operands), linear in the operands, with a transpose of its own.

    As `jax.custom_derivatives.linear_call`, and it can be vmapped and differentiated with respect
    to the residuals too.

    Args:
        forward: (residuals, operands) -> results; linear in the operands, differentiable by JAX in
            the residuals. It may not close over traced arrays.
        backward: (residuals, cotangents of the results) -> cotangents of the operands, likewise.
        residuals: a pytree of arrays.
        operands: a pytree of floating arrays.

    Returns:
        The results: a pytree of floating arrays.
    """
    residuals, operands = vary_alike((residuals, operands))
    # Traced here and now, under the mesh and the settings of the caller.
    traced, shapes = jax.make_jaxpr(forward, return_shape=True)(residuals, operands)
    tree = jax.tree.structure(shapes)

    def run(*args: Any) -> Any:
        return tree.unflatten(core.jaxpr_as_fun(traced)(*jax.tree.leaves(args)))

    return _call(run, backward, residuals, operands, tree.unflatten(traced.out_avals))


def _call(forward: Callable, backward: Callable, residuals: Any, operands: Any, types: Any) -> Any:
    """`linear_call` with the types of its results; they and the operands may vary more widely."""
    constants, constants_tree = jax.tree.flatten(residuals)
    inputs, inputs_tree = jax.tree.flatten(operands)
    out, out_tree = jax.tree.flatten(types)

    def flat_forward(constants: Any, inputs: Any) -> Any:
        results = forward(
            jax.tree.unflatten(constants_tree, constants), jax.tree.unflatten(inputs_tree, inputs)
        )
        return jax.tree.leaves(results)

    def flat_backward(constants: Any, grads: Any) -> Any:
        results = backward(
            jax.tree.unflatten(constants_tree, constants), jax.tree.unflatten(out_tree, grads)
        )
        return jax.tree.leaves(results)

    results = _bind(constants, inputs, forward=flat_forward, backward=flat_backward, out=tuple(out))
    return jax.tree.unflatten(out_tree, results)


def _leaves_like(arg: Any, grad: Any) -> list[Any]:
    """Return the cotangents of an argument's leaves; None stands for none of them."""
    leaves, tree = jax.tree.flatten(arg)
    return [None] * len(leaves) if grad is None else tree.flatten_up_to(grad)


def _is_tangent(x: Any) -> bool:
    return not isinstance(x, SymbolicZero) and jax.typeof(x).dtype != float0


# The primitive, on flat lists. forward: (residuals, operands) -> results; backward: (residuals,
# cotangents) -> cotangents of the operands; out: types of the results. Both functions stay Python
# until they are needed: a backward pass alone never traces `forward`.

_linear = core.Primitive("linear_call")
_linear.multiple_results = True


def _bind(constants: Sequence[Any], inputs: Sequence[Any], **rules: Any) -> list[Any]:
    return _linear.bind(*constants, *inputs, number=len(constants), **rules)


@_linear.def_impl
def _evaluated(*args: Any, number: int, forward: Callable, **_: Any) -> list[Any]:
    return forward(list(args[:number]), list(args[number:]))


@_linear.def_abstract_eval
def _types(*_: Any, out: tuple[Any, ...], **__: Any) -> list[Any]:
    return list(out)


mlir.register_lowering(_linear, mlir.lower_fun(_evaluated, multiple_results=True))


def _jvp(primals: Any, tangents: Any, *, number: int, forward: Callable, **rules: Any) -> Any:
    constants, inputs = primals[:number], primals[number:]
    results = _bind(constants, inputs, forward=forward, **rules)
    terms = []
    if any(type(t) is not ad.Zero for t in tangents[number:]):
        slopes = [ad.instantiate_zeros(t) for t in tangents[number:]]
        terms.append(_bind(constants, slopes, forward=forward, **rules))
    curved = [i for i, t in enumerate(tangents[:number]) if type(t) is not ad.Zero]
    if curved:

        def of_residuals(*changed: Any) -> Any:
            new = list(constants)
            for i, x in zip(curved, changed, strict=True):
                new[i] = x
            return forward(new, list(inputs))

        before, slopes = (tuple(xs[i] for i in curved) for xs in (primals, tangents))
        terms.append(jax.jvp(of_residuals, before, slopes)[1])
    return results, [reduce(ad.add_jaxvals, parts) for parts in zip(*terms, strict=True)]


def _transpose(grads: Any, *args: Any, number: int, backward: Callable, **_: Any) -> list[Any]:
    constants, inputs = args[:number], args[number:]
    results = backward(list(constants), [ad.instantiate_zeros(g) for g in grads])
    # A known operand is one that somebody wrote zeros for.
    pairs = zip(inputs, results, strict=True)
    return [None] * number + [x if ad.is_undefined_primal(m) else None for m, x in pairs]


def _batch(
    axis: Any, args: Any, dims: Any, *, number: int, out: Any, forward: Callable, backward: Callable
) -> tuple[list[Any], list[int | None]]:
    if all(d is None for d in dims):  # as it is for values that another vmap made
        rules = {"forward": forward, "backward": backward, "out": out}
        return _bind(args[:number], args[number:], **rules), [None] * len(out)
    front = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    constants, inputs = front[:number], front[number:]
    inputs = [
        jnp.broadcast_to(x, (axis.size, *x.shape)) if d is None else x
        for x, d in zip(inputs, dims[number:], strict=True)
    ]
    axes = [None if d is None else 0 for d in dims[:number]]
    spread = axis.spmd_name or axis.explicit_mesh_axis
    rows = partial(
        jax.vmap,
        in_axes=(axes, 0),
        axis_size=axis.size,
        axis_name=axis.name,
        spmd_axis_name=spread,
    )
    types = [core.unmapped_aval(axis.size, 0, t, axis.explicit_mesh_axis) for t in out]
    rules = {"forward": rows(forward), "backward": rows(backward), "out": tuple(types)}
    return _bind(constants, inputs, **rules), [0] * len(out)


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.fancy_primitive_batchers[_linear] = _batch
