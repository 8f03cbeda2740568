"""How long does decoding one text with GPT-2 take at the best precision of each side?

    python benchmarks/precision.py --size tiny               a smoke test, seconds
    python benchmarks/precision.py                           GPT-2 124M, a minute

One row, greedy, no stop token, a cache. Weights are drawn at random, written by our own export and
opened by transformers from there. bfloat16 is the dtype of weights and products. int8 is torch's
`quantize_dynamic`: weights are int8 once, what is multiplied with them becomes int8 product by
product; GPT-2's Conv1D layers become the linear ones that it knows. Ours (`--weights int8`) rounds
weights alone: products and their sums are float32. Sides are timed in turn.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import decode
import jax
import jax.numpy as jnp
import limits
import numpy as np
import sides
import torch

import jaxgen
from jaxgen import tree
from jaxgen.models import serving
from jaxgen.ops.cpu import allocator

OURS, THEIRS = "jaxgen", "transformers"


def ours(config, params, weights: str, prompt: np.ndarray, length: int) -> Callable[[], Any]:
    """Return our side at a precision, compiled."""
    if weights == "int8":
        params = serving.ready(params, config, weights="int8")
    else:
        config = config.replace(param_dtype=weights, compute_dtype=weights)
        params = jax.tree.map(lambda leaf: leaf.astype(weights), params)
        params = serving.ready(params, config)
    tokens = jnp.asarray(prompt, jnp.int32)

    def run(params):
        given = {"length": length, "sample": jaxgen.greedy()}
        return jaxgen.generate(params, config, tokens, jax.random.key(0), **given)

    program = jax.jit(run).lower(params).compile()
    return lambda: jax.block_until_ready(program(params))


def theirs(folder: Path, config, weights: str, prompt, length: int) -> Callable[[], Any]:
    """Return transformers' side at a precision, one call behind it."""
    model = decode.model_of(folder)
    model = _dynamic(model) if weights == "int8" else model.to(getattr(torch, weights))
    about = {"max_new_tokens": length, "do_sample": False, "use_cache": True}
    ids = torch.from_numpy(prompt)

    def call():
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **about)
        return out[:, ids.shape[1] :]

    call()
    return call


def _dynamic(model: Any) -> Any:
    """Return the model with int8 weights in its linear layers, by torch's own quantiser."""
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = torch.nn.Linear(child.nx, child.nf)
                linear.weight.data, linear.bias.data = child.weight.data.T.contiguous(), child.bias
                setattr(module, name, linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


SIDES = (
    *(f"{OURS} {name}" for name in ("float32", "bfloat16", "int8")),
    *(f"{THEIRS} {name}" for name in ("float32", "bfloat16", "int8")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=decode.SIZES, default="gpt2-124m")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--length", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sides.on_cpu()
    allocator.tune()
    threads, config = sides.threads(), decode.SIZES[given.size]()
    most = limits.measure()
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    prompt = np.random.default_rng(1).integers(0, config.V, (1, given.prompt)).astype(np.int64)
    calls = {}
    with tempfile.TemporaryDirectory() as home:
        told = decode.opened(Path(home) / "hub", config, params)[1]
        for side in given.sides:
            name, _, weights = side.partition(" ")
            of = (weights, prompt, given.length)
            if name == OURS:
                calls[side] = ours(config, params, *of)
            else:
                calls[side] = theirs(Path(home) / "hub", config, *of)
        firsts = {side: np.asarray(call()) for side, call in calls.items()}
        seconds = sides.in_turn(calls, given.rounds, pause=sides.PAUSE)
        most = limits.again(most)
    medians = {side: sides.figures(of) for side, of in seconds.items()}
    best = [
        min((side for side in medians if side.startswith(name)), key=_by_median(medians))
        for name in (OURS, THEIRS)
        if any(side.startswith(name) for side in medians)
    ]
    found = {"size": given.size, "logits": told, "prompt": given.prompt}
    found |= {"new_tokens": given.length, "threads": threads, "seconds": medians}
    found["milliseconds_a_token"] = {
        side: round(1e3 * one["median_seconds"] / given.length, 2) for side, one in medians.items()
    }
    found["best"] = best
    if len(best) == 2:
        found["times_as_fast"] = sides.ratio(seconds, best[1], best[0])
    plain = firsts.get(f"{OURS} float32")
    if plain is not None:
        found["tokens_as_in_float32"] = {
            side: round(float((tokens == plain).mean()), 4) for side, tokens in firsts.items()
        }
    read = tree.nbytes(params) - params["embed"]["positions"].nbytes
    if f"{OURS} float32" in medians:
        rate = read * given.length / medians[f"{OURS} float32"]["median_seconds"]
        found["share_of_bandwidth_float32"] = round(rate / most["bytes"], 3)
    found["limits"] = limits.told(most)
    sides.write("precision", found | {"environment": sides.environment(decode.PACKAGES)})


def _by_median(medians: dict[str, Any]) -> Callable[[str], float]:
    return lambda side: medians[side]["median_seconds"]


if __name__ == "__main__":
    main()
