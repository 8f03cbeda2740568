"""Every derivative that the package writes by hand equals what JAX makes of the plain formula.

They are found in the source: one without a plain twin here fails, and so does a twin of nothing.
"""

import ast
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxgen
from jaxgen.mesh import place
from jaxgen.ops import contract, expert_exchange, experts, gates, grouped_matmul, losses, norms
from jaxgen.ops.attention import plain
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.cpu import blocked_attention as blocked
from jaxgen.ops.cpu import matmul
from jaxgen.ops.masks import make_mask
from jaxgen.ops.random import DropoutRng
from jaxgen.train import step

RULES = {"custom_jvp", "custom_vjp", "linear_call", "custom_gradient"}
B, T, D, V = 2, 11, 8, 7
SEGMENTS = jnp.asarray(np.where(np.arange(T) < [[7], [5]], 1, 2), jnp.int32)
TARGETS = jnp.asarray(np.arange(B * T).reshape(B, T) % V, jnp.int32)


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def attention(attend, drop, kv_heads, q, k, v):
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    words = {"direction": "back", "window": None, "order": "running", "prefix": None}
    mask = make_mask(positions, positions, **words, query_segments=SEGMENTS, key_segments=SEGMENTS)
    args = AttentionArgs(q, k[:, :, :kv_heads], v[:, :, :kv_heads], mask, 0.3, None, None, drop)
    return attend(args)


def plain_attention(args):
    q, k, v, mask, scale, cap, bias, drop, _ = args
    return plain.attend(q, k, v, mask.allowed, scale=scale, cap=cap, bias=bias, drop=drop)


def whole_loss(hidden, table, weights):
    logits = losses.unembed(hidden, table, cap=30.0, dtype=hidden.dtype.name)
    loss, nll = losses.cross_entropy(logits, TARGETS, smoothing=0.1, z=0.01)
    return jnp.sum(loss * weights), nll


def chunked_loss(hidden, table, weights):
    words = {"cap": 30.0, "smoothing": 0.1, "z": 0.01, "chunk": 4, "dtype": hidden.dtype.name}
    return losses.vocabulary_loss(hidden, table, TARGETS, weights, **words)


def sines(x):
    """A loss and its gradient, as a step takes them."""
    x = x.astype(jnp.float32)
    loss = jaxgen.Loss(jnp.sum(jnp.sin(x)), jnp.float32(2.0), jnp.zeros(1))
    return loss, jnp.cos(x) / 2


def twins(name, fast, slow, *arrays):
    return pytest.param(fast, slow, arrays, id=name)


def wide(function):
    """The formula in float32, rounded once, as gates compute it."""
    return lambda x: function(x.astype(jnp.float32)).astype(x.dtype)


def of_tokens(to):
    """Which token each row is, as a matrix [R, T]."""
    return jax.nn.one_hot(to.pairs // 2, T)


def exchanged(there_and_back, rows):
    """Rows sent to the experts of one device, and brought back if asked."""

    def here(rows):
        to = expert_exchange.plan(jnp.bincount(OWNERS, length=3), ("fsdp",))
        sent = expert_exchange.send(rows, to, 2 * T, ("fsdp",))
        return expert_exchange.bring_back(sent, to, T, ("fsdp",)) if there_and_back else sent

    whole = PartitionSpec()
    return jax.shard_map(here, in_specs=whole, out_specs=whole, check_vma=False)(rows)


@pytest.fixture(autouse=True)
def ragged_all_to_all(monkeypatch):
    """The exchange of one device with itself, which XLA has not for CPUs."""

    def move(operand, output, starts, sizes, landings, come, *, axis_name):
        for start, size, landing in zip(starts, sizes, landings, strict=True):
            at = jnp.arange(len(output)) - landing
            taken = operand[jnp.clip(start + at, 0, len(operand) - 1)]
            output = jnp.where(((at >= 0) & (at < size))[:, None], taken, output)
        return output

    monkeypatch.setattr(expert_exchange.lax, "ragged_all_to_all", move)


OWNERS = jnp.asarray(np.sort(np.arange(T) * 3 // T))  # of T rows: three groups
TO = experts.sort(jnp.asarray([[i % 3, (i + 1) % 3] for i in range(T)]), 3)
STATS = experts.RouterStats(jnp.ones(3), jnp.ones(3), jnp.float32(1), jnp.float32(T))
ROWS = 1, 5, matmul.FEW + 1  # each takes another path through the forward pass
Q, KV = array(B, T, 4, 6), array(B, T, 4, 6, seed=1)
TWINS = {
    # Their derivatives are no derivatives of a plain form, but sums that are compared where they
    # are used: tests/compress/test_matrices.py, tests/train/test_private.py.
    "compress/layerwise.py:_record": [],
    "privacy/ghost.py:_contract": [],
    "privacy/ghost.py:_lookup": [],
    "ops/contract.py:_matrices": [
        twins(
            f"{rows} rows, inner axis {'first' if first else 'last'}",
            partial(contract._matrices, first),
            (lambda x, w: x @ w) if first else (lambda x, w: x @ w.T),
            array(rows, D),
            array(D, V) if first else array(V, D),
        )
        for rows in ROWS
        for first in (True, False)
    ],
    "ops/contract.py:_shared": [
        twins(
            equation,
            partial(contract._shared, equation),
            partial(jnp.einsum, equation),
            array(B, T, D),
            array(*shape),
        )
        for equation, shape in {"BTD,DNH->BTNH": (D, 2, 3), "BTD,VD->BTV": (V, D)}.items()
    ],
    "ops/cpu/blocked_attention.py:_attend": [
        twins(
            f"{kv_heads} of 4 heads, {'' if drop else 'no '}dropout",
            partial(attention, blocked.attend, drop, kv_heads),
            partial(attention, plain_attention, drop, kv_heads),
            Q,
            KV,
            array(B, T, 4, 6, seed=2),
        )
        for kv_heads, drop in ((4, None), (2, None), (2, DropoutRng(jax.random.key(5), 0.7, 0, B)))
    ],
    "ops/norms.py:_unit": [
        twins(
            "rms",
            lambda x: norms._unit(x, 1e-5),
            lambda x: x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5),
            array(T, D),
        )
    ],
    "ops/expert_exchange.py:send": [
        twins(
            "rows to their experts",
            partial(exchanged, False),
            lambda rows: jnp.pad(rows, ((0, T), (0, 0))),
            array(T, D),
        )
    ],
    "ops/expert_exchange.py:bring_back": [
        twins("rows and back", partial(exchanged, True), lambda rows: rows, array(T, D))
    ],
    "ops/grouped_matmul.py:_blocked": [
        twins(
            "rows by groups",
            lambda x, w: grouped_matmul._blocked(x, w, jnp.bincount(OWNERS, length=3)),
            lambda x, w: jnp.einsum("rd,rdv->rv", x, w[OWNERS]),
            array(T, D),
            array(3, D, V),
        )
    ],
    "ops/experts.py:spread": [
        twins(
            "tokens to rows",
            lambda x: experts.spread(x, TO),
            lambda x: of_tokens(TO).astype(x.dtype) @ x,
            array(T, D),
        )
    ],
    "ops/experts.py:collect": [
        twins(
            "rows to tokens",
            lambda rows, weights: experts.collect(rows, weights, TO),
            lambda rows, weights: jnp.sum(rows[TO.rows] * weights[..., None], axis=1),
            array(2 * T, D),
            array(T, 2),
        )
    ],
    # With respect to the bias it is no derivative, and says so.
    "ops/experts.py:with_load_gradient": [
        twins(
            "weights of experts",
            lambda weights: experts.with_load_gradient(weights, jnp.ones(3), STATS),
            lambda weights: weights,
            array(T, 2),
        )
    ],
    "ops/gates.py:_with_slope": [
        twins(name, gates.ACTIVATIONS[name], wide(plain_gate), 3 * array(T, D))
        for name, plain_gate in {
            "gelu": lambda x: x * jax.scipy.stats.norm.cdf(x),
            "gelu_tanh": lambda x: x * jax.nn.sigmoid(1.5957691 * (x + 0.044715 * x**3)),
            "gelu_sigmoid": lambda x: x / (1 + jnp.exp(-1.702 * x)),
            "silu": lambda x: x / (1 + jnp.exp(-x)),
        }.items()
    ],
    "ops/losses.py:_target_logits": [
        twins(
            "a logit of each row",
            lambda x: losses._target_logits(x, TARGETS),
            lambda x: jnp.sum(x * jax.nn.one_hot(TARGETS, V, dtype=x.dtype), axis=-1),
            array(B, T, V),
        )
    ],
    "ops/losses.py:_chunked": [
        twins(
            "a vocabulary's loss",
            chunked_loss,
            whole_loss,
            array(B, T, D),
            array(V, D),
            array(B, T),
        )
    ],
    "train/step.py:_objective_of": [
        twins(
            "a loss with its gradient",
            lambda x: step._objective_of(sines, x)(x),
            lambda x: jnp.sum(jnp.sin(x.astype(jnp.float32))) / 2,
            array(D),
        )
    ],
    "mesh/place.py:_gathered": [
        twins(
            "a weight on a mesh",
            partial(place._gathered, "DF"),
            lambda w: w,
            array(D, V),
        )
    ],
}
EVERY = [case for cases in TWINS.values() for case in cases]
DTYPES = {"float32": 1e-5, "bfloat16": 0.03}  # of the largest number there


def found_in(path):
    """Yield the functions of a file that bring a derivative of their own."""

    def names(node):
        return {getattr(x, "attr", None) or getattr(x, "id", None) for x in ast.walk(node)}

    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield from [node.name] if names(node) & RULES else []
        elif isinstance(node, ast.ClassDef | ast.Assign | ast.AnnAssign):
            where = node.name if isinstance(node, ast.ClassDef) else ast.unparse(node)
            yield from [where] if names(node) & RULES else []


def test_every_derivative_written_by_hand_has_a_plain_twin():
    root = Path(jaxgen.__file__).parent
    found = {
        f"{path.relative_to(root).as_posix()}:{name}"
        for path in root.rglob("*.py")
        if path.name != "derivatives.py"  # makes them
        for name in found_in(path)
    }
    assert found == set(TWINS)


def test_every_gate_with_a_slope_is_compared():
    assert gates.ACTIVATIONS.keys() - {"relu", "relu2"} == {
        case.id for case in TWINS["ops/gates.py:_with_slope"]
    }


def near(found, wanted, tolerance):
    """Assert that trees are alike to a part of the largest number of each array."""

    def check(a, b):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1), rtol=0)

    jax.tree.map(check, found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fast", "slow", "arrays"), EVERY)
def test_value_and_all_derivatives_equal_those_of_the_plain_twin(fast, slow, arrays, dtype):
    primals = tuple(jnp.asarray(x, dtype) for x in arrays)
    tangents = tuple(jnp.asarray(array(*x.shape, seed=7), dtype) for x in arrays)

    @partial(jax.jit, static_argnums=0)
    def everything(function, primals, tangents):
        out, pull = jax.vjp(function, *primals)
        grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), out)
        grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, out)
        return out, pull(grads), jax.jvp(function, primals, tangents)

    with jax.set_mesh(jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))):
        found, wanted = (everything(f, primals, tangents) for f in (fast, slow))
    near(found, wanted, DTYPES[dtype])
