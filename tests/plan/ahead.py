"""Compiled for chips that are not here: attention with its gradient, the plan of a small Llama."""

import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.config_experts import Experts
from jaxgen.mesh import place
from jaxgen.models import api
from jaxgen.ops import attention
from jaxgen.ops.masks import make_mask
from jaxgen.plan import compiled
from jaxgen.profile import chips
from jaxgen.run import forecast
from jaxgen.run.settings import build_settings
from jaxgen.train.losses import causal_loss

B, T, N, K = 4, 1024, 8, 2


def attention_text(mesh, *, width, direction="back", window=None, cap=None, packed=True) -> str:
    """Return the compiled program of attention's gradients in bfloat16 on a mesh."""

    def shape(dims, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=place.batch_sharding(mesh, dims[:1]))

    def loss(q, k, v, ids):
        ids = ids if packed else None
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        words = {"direction": direction, "window": window, "prefix": None, "order": "running"}
        mask = make_mask(positions, positions, **words, query_segments=ids, key_segments=ids)
        q, k, v = place.constrain(q, "BTNH"), place.constrain(k, "BSKH"), place.constrain(v, "BSKH")
        out = attention.attend(q, k, v, mask, scale=0.1, cap=cap)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    arguments = [shape((B, T, heads, width)) for heads in (N, K, K)] + [shape((B, T), "int32")]
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()


def experts_text(mesh) -> str:
    """Return the compiled program of the gradients of a mixture of experts on a mesh."""
    config = ModelConfig(
        vocab_size=256, context=128, layers=1, d_model=128, heads=2, experts=Experts(number=8)
    )
    shapes, axes = api.abstract(config), api.axes(config)
    params = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes, place.state_shardings(mesh, shapes, axes),
    )  # fmt: skip
    rows = jax.ShapeDtypeStruct((8, 128), "int32", sharding=place.batch_sharding(mesh, (8, 128)))

    def loss(params, tokens):
        return causal_loss(params, config, {"tokens": tokens, "targets": tokens}).total

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(params, rows).compile().as_text()


def planned(topology, devices):
    """Return (plan, training step, decoding step) of a model that four devices share."""
    sizes = {"vocab_size": 2048, "context": 512, "layers": 16, "d_model": 512, "heads": 4}
    model = sizes | {"compute_dtype": "bfloat16", "feed": "swiglu", "norm": "rms", "biases": "none"}
    settings = build_settings(
        {"model": model, "train": {"batch": 4, "warmup": 0}, "mesh": "fsdp:4"}
    )
    plan = forecast.plan_memory(settings, *chips.parse(topology))
    return plan, compiled.training(settings, devices), compiled.decoding(settings, devices)
