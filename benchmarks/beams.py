"""How long does beam search with an encoder-decoder take against transformers and CTranslate2?

    python benchmarks/beams.py --size tiny                a smoke test, seconds
    python benchmarks/beams.py --batches 1                one case of T5 small
    python benchmarks/beams.py                            all of them, minutes

Weights are drawn at random, written by our own export and opened by transformers from there;
CTranslate2 converts what transformers opened. Logits, texts and scores are compared before anything
is timed. All sides have float32, as many threads, the same sources, 4 beams and exactly as many
new tokens (the stop token is forbidden till then). The time of a call is from source ids to new
ids, the encoder included. Without ctranslate2 that side is left out. Cases of other runs stay in
results/beams_SIZE.json, each with the commit and time of its own run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

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
from jaxgen import tree
from jaxgen.models import serving
from jaxgen.ops.cpu import allocator
from jaxgen.pretrained import hub_parity

SIZES: dict[str, Callable[[], jaxgen.ModelConfig]] = {
    "tiny": lambda: _t5(vocab_size=512, layers=2, d_model=64, heads=2, d_ff=128),
    "t5-small": lambda: _t5(),
    "t5-base": lambda: _t5("t5-base"),
}
BEAMS, PAD, STOP = 4, 0, 1
OURS, THEIRS, THIRD = "jaxgen", "transformers", "ctranslate2"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "ctranslate2")


def _t5(name: str = "t5-small", **sizes: int) -> jaxgen.ModelConfig:
    # Logits of init_std=0.02 hardly differ, and the beams of two sides would part by rounding.
    return jaxgen.preset(name).replace(dropout=0.0, init_std=0.05, **sizes)


class Texts(NamedTuple):
    """The best text of each source, [B, length], and its score: log-probability a token."""

    tokens: np.ndarray
    scores: Any  # [B]; None where they were not asked for


def our_side(config: jaxgen.ModelConfig, length: int) -> Callable:
    """Return (params, source) -> (tokens, scores), to be compiled."""

    def run(params, source):
        memory = jaxgen.encode(params, config, source)
        prompt = jnp.full((source.shape[0], 1), PAD, jnp.int32)
        stop = jnp.array([STOP])
        found = jaxgen.generate_beams(
            *(params, config, prompt, jaxgen.beams(BEAMS)),
            length=length,
            memory=memory,
            stop=stop,
            sample=jaxgen.chain(jaxgen.min_new_tokens(length, stop)),
        )
        return found.tokens[:, 0], found.scores[:, 0]

    return run


def their_side(model: Any, source: np.ndarray, length: int, told: bool = False) -> Texts:
    """Return transformers' texts; only if `told` does it keep what their scores are made of."""
    ids = torch.from_numpy(source)
    about = {"num_beams": BEAMS, "do_sample": False, "use_cache": True}
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=length,
            max_new_tokens=length,
            output_scores=told,
            return_dict_in_generate=True,
            **about,
        )
    scores = out.sequences_scores
    return Texts(out.sequences[:, 1:].numpy(), None if scores is None else scores.numpy())


def third_side(model: Any, source: np.ndarray, length: int) -> Texts:
    """Return CTranslate2's texts."""
    about = {"min_decoding_length": length, "max_decoding_length": length}
    found = model.translate_batch(
        [[str(token) for token in row] for row in source.tolist()],
        beam_size=BEAMS,
        return_scores=True,
        **about,
    )
    tokens = [[int(token) for token in one.hypotheses[0]] for one in found]
    return Texts(np.asarray(tokens), np.asarray([one.scores[0] for one in found]))


def measure(batch: int, config, params, weights, models, given, most) -> dict[str, Any]:
    """Return the figures of one case."""
    drawn = np.random.default_rng(batch)
    source = drawn.integers(STOP + 2, config.V, (batch, given.source)).astype(np.int64)
    tokens = jnp.asarray(source, jnp.int32)
    lowered = jax.jit(our_side(config, given.length)).lower(params, tokens)
    program, compiling = sides.once(lowered.compile)
    calls = {OURS: lambda: jax.block_until_ready(program(params, tokens))}
    calls |= {
        name: partial(call, models[name], source, given.length)
        for name, call in ((THEIRS, their_side), (THIRD, third_side))
        if name in models
    }
    firsts = {name: sides.once(call) for name, call in calls.items()}
    texts = {name: Texts(*map(np.asarray, found)) for name, (found, _) in firsts.items()}
    texts[THEIRS] = their_side(models[THEIRS], source, given.length, told=True)
    assert {found.tokens.shape for found in texts.values()} == {(batch, given.length)}
    seconds = sides.in_turn(calls, given.rounds, pause=sides.PAUSE)
    most = limits.again(most)
    mine = sides.figures(seconds[OURS])["median_seconds"]
    least = least_seconds(weights, batch, given, most)
    return {
        "batch": batch,
        "compile_seconds": round(compiling, 3),
        "first_call_seconds": {name: round(took, 4) for name, (_, took) in firsts.items()},
        "seconds": {name: sides.figures(of) for name, of in seconds.items()},
        "tokens_per_second": {
            name: round(batch * given.length / sides.figures(of)["median_seconds"], 1)
            for name, of in seconds.items()
        },
        "times_as_fast": {name: sides.ratio(seconds, name, OURS) for name in models},
        "limits": limits.told(most),
        "share_of_limit": round(least / mine, 3),
        "same_tokens": {
            name: round(float((texts[OURS].tokens == texts[name].tokens).mean()), 4)
            for name in models
        },
        "largest_difference_of_scores": {
            name: float(np.abs(np.subtract(texts[OURS].scores, texts[name].scores)).max())
            for name in models
        },
    }


def weights_of_step(params) -> int:
    """Return how many weights a step of the decoder multiplies with."""
    cross = params["layers"]["cross"]
    layers = tree.count(params["layers"]) - cross["k"].size - cross["v"].size
    return layers + params["embed"]["tokens"].size


def least_seconds(weights: int, batch: int, given, most) -> float:
    """Return what a call takes at the measured rates: each step reads every weight that it uses.

    Or multiplies with it, whichever takes longer; the encoder and the cache are left out.
    """
    reading = 4 * weights / most["bytes"]
    multiplying = 2 * weights * batch * BEAMS / most["flops"]
    return given.length * max(reading, multiplying)


def opened(folder: Path, config, params) -> tuple[Any, str]:
    """Return transformers' model on our weights, and the line that compares the logits."""
    jaxgen.save(folder, config, params, layout="hf", family="t5")
    told = hub_parity.compare(folder, config, params)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=PAD, eos_token_id=STOP, decoder_start_token_id=PAD
    )
    return model, told


def converted(folder: Path, model: Any, threads: int) -> Any:
    """Return CTranslate2's translator for transformers' model, by the converter of its own."""
    import ctranslate2
    from ctranslate2.converters.transformers import T5Loader

    loader = T5Loader()
    spec = loader.get_model_spec(model)
    names = [str(token) for token in range(model.config.vocab_size)]
    loader.set_vocabulary(spec, names)
    about: Any = spec.config
    about.bos_token, about.eos_token, about.unk_token = names[PAD], names[STOP], names[STOP + 1]
    about.decoder_start_token = names[PAD]
    spec.validate()
    spec.optimize(quantization=None)
    folder.mkdir()
    spec.save(str(folder))
    how = {"inter_threads": 1, "intra_threads": threads, "compute_type": "float32"}
    return ctranslate2.Translator(str(folder), device="cpu", **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="t5-small")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--source", type=int, default=32, help="tokens of each source")
    parser.add_argument("--length", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sides.on_cpu()
    allocator.tune()  # as every verb does; the others, in this process, gain as well
    threads, config = sides.threads(), SIZES[given.size]()
    most = limits.measure()
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    path = sides.RESULTS / f"beams_{given.size}.json"
    known = json.loads(path.read_text())["cases"] if path.exists() else []
    with tempfile.TemporaryDirectory() as home:
        model, told = opened(Path(home) / "hub", config, params)
        print(f"logits: {told}")
        models = {THEIRS: model}
        if find_spec(THIRD) is not None:
            models[THIRD] = converted(Path(home) / "third", model, threads)
        weights = weights_of_step(params)
        params = serving.ready(params, config)  # once, as `jaxgen.text` does when it opens a folder
        about = {"source": given.source, "new_tokens": given.length, "threads": threads}
        for batch in given.batches:
            case = measure(batch, config, params, weights, models, given, most) | about
            case["environment"] = sides.environment(PACKAGES)
            known = [c for c in known if c["batch"] != batch] + [case]
            known.sort(key=lambda case: case["batch"])
            found = {"size": given.size, "logits": told, "settings": {"beams": BEAMS}}
            sides.write(f"beams_{given.size}", found | {"cases": known})
            for name, times in case["times_as_fast"].items():
                print(f"batch {batch}: {times['of_medians']} times as fast as {name}")


if __name__ == "__main__":
    main()
