"""What a ring, an int8 cache and stop strings cost or save while decoding, in one run.

A small Llama with sliding windows, random weights: 8 prompts of 256 tokens, 128 new ones each,
greedy. Sides in turn: seconds of a whole call, bytes of the cache and, with int8, how far logits
move.

    python benchmarks/cache_forms.py
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import sides

import jaxgen
from jaxgen.models import api

CONFIG = jaxgen.ModelConfig(
    vocab_size=4096, context=512, layers=4, d_model=128, heads=8, kv_heads=2, norm="rms",
    biases="none", positions="rope", feed="swiglu", init_std=0.08, pattern=("local",), window=64,
)  # fmt: skip
BATCH, PROMPT, NEW, ROUNDS = 8, 256, 128, 9
FORMS = {
    "contiguous": {},
    "ring": {"layout": "ring"},
    "int8": {"store": "int8"},
    "ring, int8": {"layout": "ring", "store": "int8"},
}


def size_of(how: dict) -> int:
    cache = api.empty_cache(CONFIG, BATCH, PROMPT + NEW, **how)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def moved(params, prompt, how: dict) -> dict[str, float]:
    """How far logits over this cache are from the full forward pass, and how often the best is."""
    forward = jax.jit(jaxgen.apply, static_argnums=1)
    whole = forward(params, CONFIG, prompt).logits
    cache = api.empty_cache(CONFIG, BATCH, PROMPT, **how)
    found = forward(params, CONFIG, prompt, cache=cache).logits
    same = jnp.mean(jnp.argmax(found, -1) == jnp.argmax(whole, -1))
    error = jnp.abs(found - whole)
    spread = jnp.std(whole)
    return {
        "largest_error_in_standard_deviations": round(float(error.max() / spread), 5),
        "mean_error_in_standard_deviations": round(float(error.mean() / spread), 6),
        "same_best_token": round(float(same), 4),
    }


def main() -> None:
    """Print and write benchmarks/results/cache_forms.json."""
    params = jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))
    prompt = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.V, (BATCH, PROMPT)))
    pieces = [b"<%d>" % token for token in range(CONFIG.V)]
    strings = jaxgen.stop_strings([["><0><", "never"]] * BATCH, pieces)
    run = jax.jit(jaxgen.generate, static_argnames=("config", "length", "layout", "store"))
    key = jax.random.key(1)
    whole = partial(run, params, CONFIG, prompt, key, length=NEW)
    calls = {name: partial(whole, **how) for name, how in FORMS.items()}
    calls["contiguous, stop strings"] = partial(whole, strings=strings)
    tokens = {name: np.asarray(call()) for name, call in calls.items()}
    timed = {name: partial(lambda call: jax.block_until_ready(call()), call)
             for name, call in calls.items()}  # fmt: skip
    seconds = sides.in_turn(timed, ROUNDS)
    report = {
        "environment": sides.environment(),
        "shape": f"{BATCH} x ({PROMPT} + {NEW}) tokens, window {CONFIG.window}, 4 layers of 128",
        "seconds": {name: sides.figures(values) for name, values in seconds.items()},
        "to_contiguous": {
            name: sides.ratio(seconds, name, "contiguous") for name in calls if name != "contiguous"
        },
        "bytes": {name: size_of(how) for name, how in FORMS.items()},
        "int8": moved(params, prompt, {"store": "int8"}),
        "ring_makes_the_same_tokens": bool((tokens["ring"] == tokens["contiguous"]).all()),
    }
    sides.write("cache_forms", report)


if __name__ == "__main__":
    main()
