"""How long does decoding take against transformers' `generate`, with the same weights?

    python benchmarks/decode.py --size tiny                     a smoke test, seconds
    python benchmarks/decode.py --modes greedy --batches 1      one case of GPT-2 124M
    python benchmarks/decode.py                                 all of them, minutes

Weights are drawn at random, written by our own export and opened by transformers from there; the
logits of both are compared before anything is timed. Both sides have float32, the same prompts, as
many threads, exactly as many new tokens (no stop token), a cache and the same sampling settings.
Sides are timed in turn in one process; compilation and first calls are told apart. Cases of other
runs stay in results/decode_SIZE.json, each with the commit and time of its own run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import limits
import numpy as np
import sides
import torch
import transformers

import jaxgen
from jaxgen import host, tree
from jaxgen.models import serving
from jaxgen.text import hub_parity

SIZES: dict[str, Callable[[], jaxgen.ModelConfig]] = {
    "tiny": lambda: jaxgen.ModelConfig(
        vocab_size=512, context=128, layers=2, d_model=64, heads=4, init_std=0.2
    ),
    "small": lambda: jaxgen.ModelConfig(
        vocab_size=8192, context=1024, layers=6, d_model=384, heads=6
    ),
    "gpt2-124m": lambda: jaxgen.preset("gpt2-124m").replace(dropout=0.0),
}
TEMPERATURE, TOP_P, BEAMS = 0.8, 0.95, 4
OURS, THEIRS = "jaxgen", "transformers"
MODES = ("greedy", "sampled", "beams")
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")


def our_side(mode: str, config: jaxgen.ModelConfig, length: int) -> Callable:
    """Return (params, prompt, key) -> new tokens [B, length], to be compiled."""

    def run(params, prompt, key):
        if mode == "beams":
            search = jaxgen.beams(BEAMS)
            found = jaxgen.generate_beams(params, config, prompt, search, length=length)
            return found.tokens[:, 0]
        sample = jaxgen.greedy()
        if mode == "sampled":
            sample = jaxgen.chain(jaxgen.temperature(TEMPERATURE), jaxgen.top_p(TOP_P))
        return jaxgen.generate(params, config, prompt, key, length=length, sample=sample)

    return run


def their_side(mode: str, model: Any, prompt: np.ndarray, length: int) -> torch.Tensor:
    """Return transformers' new tokens [B, length]."""
    how = {
        "greedy": {"do_sample": False},
        "sampled": {
            "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0,
        },
        "beams": {"do_sample": False, "num_beams": BEAMS},
    }[mode]  # fmt: skip
    ids = torch.from_numpy(prompt)
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, use_cache=True, **how
        )
    return out[:, ids.shape[1] :]


def measure(mode: str, batch: int, config, params, model, given, most, read) -> dict[str, Any]:
    """Return the figures of one case."""
    drawn = np.random.default_rng(batch)
    prompt = drawn.integers(0, config.V, (batch, given.prompt)).astype(np.int64)
    tokens = jnp.asarray(prompt, jnp.int32)
    lowered = jax.jit(our_side(mode, config, given.length)).lower(params, tokens, jax.random.key(0))
    program, compiling = sides.once(lowered.compile)
    ours = lambda: jax.block_until_ready(program(params, tokens, jax.random.key(0)))  # noqa: E731
    theirs = partial(their_side, mode, model, prompt, given.length)
    found, our_first = sides.once(ours)
    wanted, their_first = sides.once(theirs)
    found, wanted = np.asarray(found), wanted.numpy()
    assert found.shape == wanted.shape == (batch, given.length), (found.shape, wanted.shape)
    seconds = sides.in_turn({OURS: ours, THEIRS: theirs}, given.rounds)
    case = {
        "mode": mode,
        "batch": batch,
        "compile_seconds": round(compiling, 3),
        "first_call_seconds": {OURS: round(our_first, 4), THEIRS: round(their_first, 4)},
        "seconds": {name: sides.figures(of) for name, of in seconds.items()},
        "tokens_per_second": {
            name: round(batch * given.length / sides.figures(of)["median_seconds"], 1)
            for name, of in seconds.items()
        },
        "times_as_fast": sides.ratio(seconds, THEIRS, OURS),
    }
    if mode != "beams":
        # Each step reads every weight once, but positions: the least that memory must deliver.
        rate = read * given.length / case["seconds"][OURS]["median_seconds"]
        case["share_of_bandwidth"] = round(rate / most["bytes"], 3)
    if mode != "sampled":
        case["same_tokens"] = round(float((found == wanted).mean()), 4)
    return case


def opened(folder: Path, config, params) -> tuple[Any, str]:
    """Return transformers' model on our weights, and the line that compares the logits."""
    jaxgen.save(folder, config, params, layout="hf", family="gpt2")
    told = hub_parity.compare(folder, config, params)
    return model_of(folder), told


def model_of(folder: Path) -> Any:
    """Return transformers' model of a folder, which no token stops."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="gpt2-124m")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--length", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    host.tune()  # as every verb of the command line does; torch, in this process, gains as well
    threads, config = sides.threads(), SIZES[given.size]()
    most = limits.measure()
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    with tempfile.TemporaryDirectory() as home:
        model, told = opened(Path(home) / "hub", config, params)
        print(f"logits: {told}")
        read = tree.nbytes(params) - params["embed"]["positions"].nbytes
        params = serving.ready(params, config)  # once, as `jaxgen.text` does when it opens a folder
        about = {"prompt": given.prompt, "new_tokens": given.length, "threads": threads}
        about["limits"] = {name: round(value / 1e9, 1) for name, value in most.items()}
        path = sides.RESULTS / f"decode_{given.size}.json"
        known = json.loads(path.read_text())["cases"] if path.exists() else []
        for mode in given.modes:
            for batch in given.batches:
                case = measure(mode, batch, config, params, model, given, most, read) | about
                case["environment"] = sides.environment(PACKAGES)
                known = [c for c in known if (c["mode"], c["batch"]) != (mode, batch)] + [case]
                print(f"{mode}, batch {batch}: {case['times_as_fast']['of_medians']} times as fast")
    order = [(mode, batch) for mode in MODES for batch in sorted({c["batch"] for c in known})]
    known.sort(key=lambda case: order.index((case["mode"], case["batch"])))
    settings = {"temperature": TEMPERATURE, "top_p": TOP_P, "beams": BEAMS}
    found = {"size": given.size, "logits": told, "settings": settings, "cases": known}
    sides.write(f"decode_{given.size}", found)


if __name__ == "__main__":
    main()
