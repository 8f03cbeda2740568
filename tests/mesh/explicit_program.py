"""A model on meshes with Explicit axes: prints which results differ from one device's."""

import contextlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgen
from jaxgen.errors import ConfigError

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=32, layers=1, d_model=8, heads=2, norm="rms", positions="rope",
    feed="swiglu", biases="none",
)  # fmt: skip
ENCODER = jaxgen.ModelConfig(
    vocab_size=32, context=32, layers=1, d_model=8, heads=2, topology="encoder", head="none"
)
KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 32, (8, 8)).astype(np.int32)
SAMPLE = jaxgen.chain(jaxgen.temperature(0.7), jaxgen.top_p(0.9))
EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
SHARED = ("data", "fsdp")
FSDP, TENSOR, FOREIGN = {"D": "fsdp"}, dict.fromkeys("NFV", "tensor"), dict.fromkeys("NFV", "tp")
# (axes, their types, where parameters lie by letter, where tokens lie, whether the mesh is set)
MESHES = {
    "ours": (("data", "fsdp"), (EXPLICIT, EXPLICIT), FSDP, P(SHARED), True),
    "not set": (("data", "fsdp"), (EXPLICIT, EXPLICIT), FSDP, P(SHARED), False),
    "mixed": (("data", "tensor"), (EXPLICIT, AUTO), TENSOR, P("data"), True),
    "foreign": (("dp", "tp"), (EXPLICIT, EXPLICIT), FOREIGN, P("dp"), True),
}


def loss(params, config, batch, key=None):
    return jaxgen.causal_loss(params, config, batch, key)


def gradient(params, tokens):
    batch = {"tokens": tokens, "targets": tokens}
    return jax.grad(lambda p: loss(p, CONFIG, batch).total)(params)


def step(params, tokens, accumulate=2):
    optimizer = optax.sgd(0.1)
    about = {"config": CONFIG, "optimizer": optimizer, "loss": loss, "accumulate": accumulate}
    batch = {"tokens": tokens, "targets": tokens}
    state, metrics = jaxgen.train_step(jaxgen.train_state(params, optimizer, KEY), batch, **about)
    return state.params, metrics["examples"], metrics["loss"]


def encoded(params, tokens):
    return jaxgen.encode(jaxgen.init(ENCODER, KEY), ENCODER, tokens).state


def continued(params, tokens):
    cache = jaxgen.empty_cache(CONFIG, 8, 16)
    out = jaxgen.apply(params, CONFIG, tokens[:, :5], cache=cache)
    return jaxgen.apply(params, CONFIG, tokens[:, 5:], cache=out.cache).logits


def own_step(params, tokens, cache):
    out = jaxgen.apply(params, CONFIG, tokens[:, None], cache=cache)
    return out.logits[:, 0], out.cache


def decoded(params, tokens):
    first, cache = jaxgen.prefill(params, CONFIG, tokens, jnp.full(8, 8), 11)
    taken = jax.tree_util.Partial(own_step, params)
    return jaxgen.decode(taken, cache, first, KEY, jaxgen.greedy(), 3)[0]


def closed(params, tokens):
    cache = jaxgen.empty_cache(CONFIG, 8, 16)
    taken = partial(own_step, params)  # no argument: a function that holds arrays
    return jaxgen.decode(taken, cache, tokens[:, 0], KEY, jaxgen.greedy(), 3)[0]


CASES = {
    "logits": lambda p, t: jaxgen.apply(p, CONFIG, t).logits,
    "gradient": gradient,
    "step": step,
    "sampled": lambda p, t: jaxgen.generate(p, CONFIG, t, KEY, length=3, sample=SAMPLE),
    "beams": lambda p, t: jaxgen.generate_beams(p, CONFIG, t, jaxgen.beams(2), length=2).tokens,
    "encoded": encoded,
    "continued": continued,
    "decoded": decoded,
}
CHOSEN = {
    "ours": tuple(CASES),
    "not set": ("gradient",),
    "mixed": ("gradient", "sampled"),
    "foreign": ("gradient", "sampled"),
}
BY_ROW = ("logits", "sampled", "beams", "encoded", "continued", "decoded")


def placed(mesh, params, where, rows):
    lay = lambda letters: NamedSharding(mesh, P(*map(where.get, letters)))  # noqa: E731
    params = jax.device_put(params, jax.tree.map(lay, jaxgen.axes(CONFIG)))
    return params, jax.device_put(TOKENS, NamedSharding(mesh, rows))


def main() -> None:
    params, wrong = jaxgen.init(CONFIG, KEY), []
    wanted = {name: jax.device_get(jax.jit(CASES[name])(params, TOKENS)) for name in CASES}
    for name, (names, types, where, rows, is_set) in MESHES.items():
        mesh = jax.make_mesh((2, 2), names, axis_types=types)
        spread, tokens = placed(mesh, params, where, rows)
        force = jax.set_mesh(mesh) if is_set else contextlib.nullcontext()
        with force:
            for case in CHOSEN[name]:
                found = jax.jit(CASES[case])(spread, tokens)
                near = jax.tree.map(lambda x, y: np.allclose(x, y, 1e-4, 1e-5), found, wanted[case])
                wrong += [] if all(jax.tree.leaves(near)) else [f"{name} {case}"]
                if case in BY_ROW and jax.typeof(found).sharding.spec[0] != rows[0]:
                    wrong.append(f"{name} {case}: {jax.typeof(found)}")
                if case in ("gradient", "step"):
                    changed = found[0] if case == "step" else found
                    same = jax.tree.map(
                        lambda x, y: jax.typeof(x) == jax.typeof(y), changed, spread
                    )
                    wrong += [] if all(jax.tree.leaves(same)) else [f"{name} {case}: types"]
            if name == "ours":  # without jit
                found = jaxgen.generate(spread, CONFIG, tokens, KEY, length=3, sample=SAMPLE)
                wrong += [] if np.array_equal(found, wanted["sampled"]) else ["sampled without jit"]
                try:
                    jax.jit(closed)(spread, tokens)
                    wrong.append("closed")
                except ConfigError as error:
                    wrong += [] if "jax.tree_util.Partial(" in str(error) else [str(error)]

    mesh = jax.make_mesh((2, 2), ("dp", "tp"), axis_types=(AUTO, AUTO))
    with jax.set_mesh(mesh):  # a layout of ours would gather what another name's axis spreads
        args = placed(mesh, params, FOREIGN | {"V": None}, P("dp"))
        program = jax.jit(CASES["logits"]).lower(*args).compile().as_text()
        wrong += ["foreign: all-gather"] if "all-gather" in program else []
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
