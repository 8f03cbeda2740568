"""How long does decoding take against transformers' `generate`, with the same weights?

    python benchmarks/decode.py --size tiny                     a smoke test, seconds
    python benchmarks/decode.py --modes greedy --batches 1      one case of GPT-2 124M
    python benchmarks/decode.py                                 all of them, minutes
    python benchmarks/decode.py --modes prefill --prompt 512    up to the first new token
    python benchmarks/decode.py --size tinyllama-1b --batches 1 --length 16 --rounds 3
    python benchmarks/decode.py --size tinyllama-1b --dtype bfloat16     on a GPU, all sides

Weights are drawn at random, written by our own export and opened by transformers from there; the
logits of both are compared before anything is timed. Sides: `generate` of transformers as it
comes, and with a static cache and its step compiled; a loop by hand (`peers_decode.py`), eager and
compiled. All have weights of one type, the same prompts, as many threads, exactly as many new
tokens (no stop token), a cache and the same sampling settings. They are timed in turn in one
process; compilation and first calls are told apart. Cases of other runs stay in
results/decode_SIZE.json, each with the commit and time of its own run; those of a GPU, and of
bfloat16, in files of their own.
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
import peers
import peers_decode
import sides
import torch
import transformers

import jaxgen
from jaxgen import tree
from jaxgen.models import serving
from jaxgen.ops.cpu import allocator
from jaxgen.pretrained import hub_parity

SIZES: dict[str, Callable[[], jaxgen.ModelConfig]] = {
    "tiny": lambda: jaxgen.ModelConfig(
        vocab_size=512, context=128, layers=2, d_model=64, heads=4, init_std=0.2
    ),
    "small": lambda: jaxgen.ModelConfig(
        vocab_size=8192, context=1024, layers=6, d_model=384, heads=6
    ),
    "gpt2-124m": lambda: jaxgen.preset("gpt2-124m").replace(dropout=0.0),
    # Zhang et al. 2024, its output tied: 1.03 billion parameters.
    "tinyllama-1b": lambda: jaxgen.ModelConfig(
        vocab_size=32000,
        context=2048,
        layers=22,
        d_model=2048,
        heads=32,
        kv_heads=4,
        d_ff=5632,
        norm="rms",
        positions="rope",
        feed="swiglu",
        biases="none",
    ),
}
TEMPERATURE, TOP_P, BEAMS = 0.8, 0.95, 4
OURS, THEIRS, STATIC = "jaxgen", "transformers", "transformers, static and compiled"
HAND, COMPILED = "torch by hand", "torch by hand, compiled"
OTHERS = (THEIRS, STATIC, HAND, COMPILED)
MODES = ("greedy", "sampled", "beams", "prefill")
# Which of them a mode has: a loop by hand has no beams, and one token is no loop.
LACKING = {"beams": (STATIC, HAND, COMPILED), "prefill": (STATIC, COMPILED)}
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


def their_side(
    mode: str, model: Any, prompt: np.ndarray, length: int, *, static: bool
) -> torch.Tensor:
    """Return transformers' new tokens [B, length]."""
    how: dict[str, Any] = {
        "sampled": {
            "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0,
        },
        "beams": {"do_sample": False, "num_beams": BEAMS},
    }.get(mode, {"do_sample": False})  # fmt: skip
    if static:
        # It compiles by itself on accelerators alone, unless told that any device will do.
        compiling = transformers.CompileConfig()
        compiling._compile_all_devices = True
        how |= {"cache_implementation": "static", "compile_config": compiling}
    ids = torch.from_numpy(prompt).to(model.device)
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, use_cache=True, **how
        )
    peers.wait()
    return out[:, ids.shape[1] :]


def others(
    mode: str, names: list[str], prompt: np.ndarray, length: int, model: Any, hand: peers.Model
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what each other side does, by name."""
    how = {"temperature": TEMPERATURE, "top_p": TOP_P} if mode == "sampled" else {}
    ids = torch.from_numpy(prompt).to(peers.device())
    slots, found = prompt.shape[1] + length, {}
    for name in (n for n in OTHERS if n in names and n not in LACKING.get(mode, ())):
        if name in (THEIRS, STATIC):
            found[name] = partial(their_side, mode, model, prompt, length, static=name == STATIC)
        else:
            loop = peers_decode.Loop(hand, len(prompt), slots, compiled=name == COMPILED)
            found[name] = partial(loop, ids, length, **how)
    return found


def measure(mode: str, batch: int, config, params, model, hand, given, most, read) -> dict:
    """Return the figures of one case."""
    length = 1 if mode == "prefill" else given.length
    drawn = np.random.default_rng(batch)
    prompt = drawn.integers(0, config.V, (batch, given.prompt)).astype(np.int64)
    tokens = jnp.asarray(prompt, jnp.int32)
    lowered = jax.jit(our_side(mode, config, length)).lower(params, tokens, jax.random.key(0))
    program, compiling = sides.once(lowered.compile)
    ours = lambda: jax.block_until_ready(program(params, tokens, jax.random.key(0)))  # noqa: E731
    calls = {OURS: ours} | others(mode, given.sides, prompt, length, model, hand)
    first, out = {}, {}
    for name, call in calls.items():
        out[name], first[name] = sides.once(call)
        assert out[name].shape == (batch, length), (name, out[name].shape)
    seconds = sides.in_turn(calls, given.rounds)
    most = limits.again(most, given.dtype)
    case = {
        "mode": mode,
        "batch": batch,
        "prompt": given.prompt,
        "new_tokens": length,
        "compile_seconds": round(compiling, 3),
        "first_call_seconds": {name: round(of, 4) for name, of in first.items()},
        "seconds": {name: sides.figures(of) for name, of in seconds.items()},
        "tokens_per_second": {
            name: round(batch * length / sides.figures(of)["median_seconds"], 1)
            for name, of in seconds.items()
        },
        "times_as_fast_as": {n: sides.ratio(seconds, n, OURS) for n in calls if n != OURS},
        "limits": limits.told(most),
    }
    taken = case["seconds"][OURS]["median_seconds"]
    if mode == "prefill":
        # Each matrix once a token, the output's once a row; what attention multiplies is left out.
        weights = read / jnp.dtype(config.param_dtype).itemsize - config.V * config.d_model
        work = 2.0 * batch * given.prompt * weights
        case["tokens_per_second"] = {n: round(r * given.prompt) for n, r in
                                     case["tokens_per_second"].items()}  # fmt: skip
        case["share_of_products"] = round(work / taken / most["flops"], 3)
    elif mode != "beams":
        # Each step reads every weight once, but positions: the least that memory must deliver.
        case["share_of_bandwidth"] = round(read * length / taken / most["bytes"], 3)
    if mode != "sampled":
        there = {n: x.cpu().numpy() if isinstance(x, torch.Tensor) else x for n, x in out.items()}
        same = {n: np.mean(np.asarray(there[OURS]) == there[n]) for n in calls}
        case["same_tokens"] = {n: round(float(of), 4) for n, of in same.items() if n != OURS}
    return case


def opened(folder: Path, config, params) -> tuple[Any, str]:
    """Return transformers' model on our weights, and the line that compares the logits."""
    family = "gpt2" if config.positions == "learned" else "llama"
    jaxgen.save(folder, config, params, layout="hf", family=family)
    told = hub_parity.compare(folder, config, params)
    return model_of(folder, config.param_dtype), told


def model_of(folder: Path, dtype: str = "float32") -> Any:
    """Return transformers' model of a folder, which no token stops."""
    of = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=of).eval()
    model.to(peers.device())
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="gpt2-124m")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:3])
    parser.add_argument("--sides", nargs="+", choices=OTHERS, default=OTHERS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--length", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    allocator.tune()  # as every verb does; torch, in this process, gains as well
    threads, config = sides.threads(), SIZES[given.size]()
    config = config.replace(param_dtype=given.dtype, compute_dtype=given.dtype)
    ours = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    sides.one_device({"jaxgen": ours, "torch": peers.device()})
    name = "_".join(["decode", given.size, *sorted({ours, given.dtype} - {"cpu", "float32"})])
    most = limits.measure(given.dtype)
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    with tempfile.TemporaryDirectory() as home:
        model, told = opened(Path(home) / "hub", config, params)
        print(f"logits: {told}")
        positions = params["embed"].get("positions")
        read = tree.nbytes(params) - (0 if positions is None else positions.nbytes)
        hand = peers.load(config, params)
        hand.to(peers.device(), getattr(torch, given.dtype))
        params = serving.ready(params, config)  # once, as `jaxgen.text` does when it opens a folder
        about: dict[str, Any] = {"threads": threads}
        path = sides.RESULTS / f"{name}.json"
        known = json.loads(path.read_text())["cases"] if path.exists() else []
        for mode in given.modes:
            for batch in given.batches:
                case = measure(mode, batch, config, params, model, hand, given, most, read)
                case |= about
                case["environment"] = sides.environment(PACKAGES)
                known = [c for c in known if (c["mode"], c["batch"]) != (mode, batch)] + [case]
                for side, times in case["times_as_fast_as"].items():
                    print(f"{mode}, batch {batch}: {times['of_medians']} times as fast as {side}")
    order = [(mode, batch) for mode in MODES for batch in sorted({c["batch"] for c in known})]
    known.sort(key=lambda case: order.index((case["mode"], case["batch"])))
    settings = {"temperature": TEMPERATURE, "top_p": TOP_P, "beams": BEAMS}
    found = {"size": given.size, "logits": told, "settings": settings, "cases": known}
    sides.write(name, found)


if __name__ == "__main__":
    main()
