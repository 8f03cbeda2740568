"""Loss curves on eight fake devices: of one device, of meshes, of the three forms.

Prints one JSON line of {"name": {...}}; `test_meshes.py` reads it. Its own process, because the
number of devices is fixed when JAX starts.
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen import tree
from jaxgen.mesh import MeshSettings, device_mesh, fetch, place
from jaxgen.mesh.settings import parse
from jaxgen.models import api
from jaxgen.train import optimizer, partitioner
from jaxgen.train import state as states
from jaxgen.train.settings import TrainSettings

STEPS, B, T = 20, 16, 16
CONFIG = jaxgen.ModelConfig(
    vocab_size=64, context=T, layers=2, d_model=16, heads=8, d_ff=32, dropout=0.1,
    norm="rms", positions="rope", feed="swiglu", biases="none", output="untied", init_std=0.2,
)  # fmt: skip
SETTINGS = TrainSettings(
    steps=STEPS, batch=B, accumulate=2, warmup=2, learning_rate=3e-3, loss_chunk=6
)
OPTIMIZER = optimizer.make(SETTINGS, api.axes(CONFIG))


def batches():
    """Packed rows: two documents in each, the second of another length, the end padding."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = rng.integers(0, 64, (B, T + 1)).astype("i4")
        ends = rng.integers(3, T, (B, 1))
        place_ = np.arange(T)[None]
        second = (place_ >= ends).astype("i4")
        weights = ((place_ != ends - 1) & (place_ < T - rng.integers(0, 3, (B, 1)))).astype("f4")
        yield {
            "tokens": tokens[:, :-1],
            "targets": (tokens[:, :-1] * 7 + 3).astype("i4") % 64,
            "weights": weights,
            "segments": 1 + second,
            "positions": (place_ - ends * second).astype("i4"),
        }


def fresh():
    key = jax.random.key(0)
    return states.train_state(api.init(CONFIG, key), OPTIMIZER, jax.random.fold_in(key, 1))


def started(words: str, form: str = "jit"):
    """Return (mesh, state, step) of a mesh in words; "" is one device."""
    settings = MeshSettings(**(parse(words) if words else {"data": 1}), form=form)
    count = int(np.prod(settings.sizes(_devices(settings))))
    mesh = device_mesh.make_mesh(settings, jax.devices()[:count])
    options = {
        "config": CONFIG,
        "optimizer": OPTIMIZER,
        "loss": partial(jaxgen.causal_loss, chunk=SETTINGS.loss_chunk),
        "accumulate": SETTINGS.accumulate,
    }
    step = partial(jaxgen.train_step, **options)
    if mesh is None:
        return None, jax.jit(fresh)(), partitioner.make_step(form, step, None, None, B)
    shapes = jax.eval_shape(fresh)
    place.check_params(mesh, shapes.params, api.axes(CONFIG))
    place.check_batch(mesh, B, SETTINGS.accumulate, T)
    shardings = place.state_shardings(mesh, shapes, api.axes(CONFIG))
    state = place.under(mesh, jax.jit(fresh, out_shardings=shardings))()
    return mesh, state, partitioner.make_step(form, step, mesh, shardings, B)


def _devices(settings):
    return (settings.data or 1) * settings.fsdp * settings.tensor * settings.sequence


def curve(words: str, form: str = "jit") -> dict:
    """Return losses of 20 steps and greedy tokens afterwards."""
    mesh, state, step = started(words, form)
    losses = []
    for batch in batches():
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return {"losses": losses, "largest": _largest(state.params), "tokens": tokens(mesh, state)}


def tokens(mesh, state) -> list:
    prompt = jnp.asarray(np.random.default_rng(1).integers(0, 64, (8, 4)), jnp.int32)
    sample = jaxgen.chain(jaxgen.temperature(0.8), jaxgen.top_k(8))
    run = jax.jit(partial(jaxgen.generate, length=8, sample=sample), static_argnums=1)
    out = place.under(mesh, run)(state.params, CONFIG, prompt, jax.random.key(2))
    return np.asarray(fetch(out)).tolist()


def _largest(params) -> float:
    """Return the largest share of a parameter that one device holds, vectors aside."""
    flat = {p: x for p, x in tree.flatten(params).items() if "norm" not in p}
    shares = [x.addressable_shards[0].data.size / x.size for x in flat.values()]
    return max(shares)


def main(names: list[str]) -> None:
    found = {}
    for name in names:
        words, _, form = name.partition("/")
        found[name] = curve(words, form or "jit")
        print(name, file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
