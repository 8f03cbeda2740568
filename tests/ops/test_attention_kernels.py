"""Each kernel of attention equals the plain formula, and is chosen where it supports the call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxgen.mesh import place
from jaxgen.ops.attention import dispatch
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.masks import cross_mask, make_mask
from jaxgen.ops.random import DropoutRng

rng = np.random.default_rng(0)
B, T, N, H = 2, 256, 2, 8
DOCUMENTS = np.where(np.arange(T) < 100, 1, 2)[None] * np.ones((B, 1), int)
CHANCE = DropoutRng(jax.random.key(0), 0.5, 0, B)
MEMORY = jnp.asarray(np.arange(128)[None] < [[90], [128]], jnp.int32)  # the rest is padding
DOCUMENTS[1] = np.where(np.arange(T) < 250, 1, 0)


def mask_of(direction="back", window=None, segments=None, order="running", prefix=None):
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    ids = None if segments is None else jnp.asarray(segments, jnp.int32)
    words = {"direction": direction, "window": window, "order": order, "prefix": prefix}
    return make_mask(positions, positions, **words, query_segments=ids, key_segments=ids)


def make_args(*, mask=None, kv_heads=N, keys=T, dtype="float32", **options):
    shapes = [(B, T, N, H), (B, keys, kv_heads, H), (B, keys, kv_heads, H)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    options = {"scale": 0.3, "cap": None, "bias": None, "drop": None} | options
    return AttentionArgs(q, k, v, mask_of() if mask is None else mask, **options)


def value_and_grads(name, args):
    def loss(q, k, v):
        out = dispatch.KERNELS[name].attend(args._replace(q=q, k=k, v=v))
        real = True if args.mask.query_segments is None else args.mask.query_segments > 0
        # What padding sees means nothing.
        return jnp.sum(jnp.where(real, jnp.sin(out).sum((2, 3)), 0.0)), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args[:3])
    return out, grads


SPLASH = {
    "causal, segments, grouped heads, soft cap": lambda: make_args(
        mask=mask_of(segments=DOCUMENTS), kv_heads=1, cap=2.0
    ),
    "both sides, window": lambda: make_args(mask=mask_of("both", window=20)),
    "to another text": lambda: make_args(
        mask=cross_mask(jnp.ones((B, T), jnp.int32), MEMORY), keys=128
    ),
}


@pytest.mark.parametrize("name", SPLASH)
def test_the_kernel_for_tpus_equals_plain_attention_in_values_and_gradients(name):
    args = SPLASH[name]()
    assert dispatch.choose(args, "tpu") == "splash"
    found, wanted = value_and_grads("splash", args), value_and_grads("plain", args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "on_tpu", "on_gpu"),
    [
        ({}, "splash", "plain"),
        ({"dtype": "bfloat16"}, "splash", "cudnn"),
        ({"dtype": "bfloat16", "cap": 30.0}, "splash", "plain"),
        ({"dtype": "bfloat16", "drop": CHANCE}, "plain", "plain"),
        ({"dtype": "bfloat16", "bias": jnp.zeros((1, N, T, T))}, "plain", "plain"),
        ({"dtype": "bfloat16", "mask": mask_of(order="free")}, "plain", "cudnn"),
        (
            {"dtype": "bfloat16", "mask": mask_of(prefix=jnp.asarray(DOCUMENTS == 1))},
            "plain",
            "cudnn",
        ),
        ({"dtype": "bfloat16", "keys": 100}, "plain", "cudnn"),
    ],
)
def test_the_table_takes_a_kernel_only_where_it_is_supported(options, on_tpu, on_gpu):
    args = make_args(**options)
    found = [dispatch.choose(args, platform) for platform in ("tpu", "gpu", "cpu", "rocket")]
    on_cpu = "plain" if set(options) & {"cap", "bias"} else "blocked"
    assert found == [on_tpu, on_gpu, on_cpu, "plain"]


def test_heads_rows_or_queries_that_do_not_divide_over_the_mesh_are_left_to_the_compiler():
    chip = AbstractDevice(device_kind="TPU v5p", num_cores=1, platform="tpu")
    names = ("data", "fsdp", "tensor", "sequence")
    for sizes, wanted, look in [
        ((1, 2, 2, 2), "splash", "back"),
        ((1, 3, 1, 1), "plain", "back"),  # 2 rows
        ((1, 1, 4, 1), "plain", "back"),  # 2 heads
        ((1, 1, 1, 4), "plain", "back"),  # 256 queries in lanes of 128
        ((1, 2, 2, 1), "splash", "both"),
        ((1, 2, 1, 2), "plain", "both"),  # a mask that hides nothing can't be cut
    ]:
        mesh = AbstractMesh(sizes, names, (AxisType.Auto,) * 4, abstract_device=chip)
        with jax.sharding.use_abstract_mesh(mesh):
            args = make_args(mask=mask_of(look))
            assert dispatch.choose(args, place.platform()) == wanted, sizes


CUDNN = {
    "causal": {},
    "window": {"window": 33},
    "packed": {"segments": DOCUMENTS},
    "packed, window": {"segments": DOCUMENTS, "window": 33},
    "both sides": {"direction": "both"},
    "both sides, packed": {"direction": "both", "segments": DOCUMENTS},
    "both sides, window": {"direction": "both", "window": 20},
    "a prefix": {"prefix": jnp.asarray(DOCUMENTS == 1)},
    "in no order": {"order": "free", "window": 9},
}


@pytest.mark.parametrize("name", CUDNN)
def test_what_cudnn_is_told_is_what_the_mask_says(name, monkeypatch):
    real, told = jax.nn.dot_product_attention, []

    def by_xla(q, k, v, **words):
        told.append(words)
        return real(q, k, v, **words | {"implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    args = make_args(mask=mask_of(**CUDNN[name]), kv_heads=1)
    found, wanted = value_and_grads("cudnn", args), value_and_grads("plain", args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
    (words,) = told
    assert words["implementation"] == "cudnn"
    # What is in order is told in words, with which blocks are skipped.
    in_words = name not in ("both sides, window", "a prefix", "in no order")
    assert words.get("is_causal", False) == (in_words and "both" not in name)
    assert (words["mask"] is not None) == ("packed" in name or not in_words)


def test_cudnn_is_left_where_a_mesh_cuts_sequences_or_heads_of_keys():
    chip = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    names = ("data", "fsdp", "tensor", "sequence")
    for sizes, kv_heads, wanted in [
        ((1, 2, 2, 1), N, "cudnn"),
        ((2, 1, 1, 1), 1, "cudnn"),
        ((1, 1, 2, 1), 1, "plain"),  # one head of keys for two devices
        ((1, 1, 1, 2), N, "plain"),
        ((1, 3, 1, 1), N, "plain"),  # 2 rows
    ]:
        mesh = AbstractMesh(sizes, names, (AxisType.Auto,) * 4, abstract_device=chip)
        with jax.sharding.use_abstract_mesh(mesh):
            args = make_args(kv_heads=kv_heads, dtype="bfloat16")
            assert dispatch.choose(args, place.platform()) == wanted, (sizes, kv_heads)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("segments", [None, DOCUMENTS], ids=["alone", "packed"])
@pytest.mark.parametrize("window", [None, 33])
def test_cudnn_equals_plain_attention_in_values_and_gradients(window, segments):
    args = make_args(mask=mask_of(window=window, segments=segments), kv_heads=1, dtype="bfloat16")
    assert dispatch.choose(args, "gpu") == "cudnn"
    found, wanted = value_and_grads("cudnn", args), value_and_grads("plain", args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x.astype("float32"), y.astype("float32"), atol=3e-2)
