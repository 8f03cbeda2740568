"""How long does a cold process take to its first token, against transformers?

    python benchmarks/first_token.py --size tiny           a smoke test
    python benchmarks/first_token.py --cases warm          one case of GPT-2 124M
    python benchmarks/first_token.py --home /tmp/model     keeps the model for the next run

Weights are drawn at random, written by our own export beside a byte-level BPE, and opened from
there by both. A side is a process: from its start to the first byte that it writes, which is
written once the first token is known. Ours is `jaxgen generate` (cold: with an empty compilation
cache, warm: with what an earlier process has left there), theirs the shortest script that does
the same with transformers; both must come to the same text. The files are in the page cache.
Figures: results/first_token.json; cases of other runs stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sides

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 1024, "context": 64, "layers": 2, "d_model": 64, "heads": 4},
    "gpt2-124m": {"vocab_size": 50257, "context": 1024, "layers": 12, "d_model": 768, "heads": 12},
}
PROMPT = "The truth value of a list is false if it is empty, and a loop over it never runs its body"
PEER = "transformers"
CASES = ("warm", "cold", "starts")
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "tokenizers")
BLOCK = 1 << 24  # bytes read at once to find out how fast reading is


def make(folder: Path, size: str) -> None:
    """Write a model with random weights and its tokenizer, unless they are there."""
    if folder.exists():
        return
    import jax

    import jaxgen

    config = jaxgen.ModelConfig(**SIZES[size])
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    draft = folder.with_name("draft")
    shutil.rmtree(draft, ignore_errors=True)
    jaxgen.save(draft, config, params, layout="hf", family="gpt2")
    (draft / "tokenizer.json").write_text(tokenizer(config.V))
    draft.rename(folder)


def tokenizer(size: int) -> str:
    """Return a byte-level BPE of Python's documentation, filled up with pieces nobody writes."""
    from pydoc_data.topics import topics

    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=min(size, 8192),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(list(topics.values()), trainer)
    stored = json.loads(made.to_str())
    known = stored["model"]["vocab"]
    known |= {f"unused {i}": i for i in range(len(known), size)}
    return json.dumps(stored)


def theirs(folder: str, prompt: str) -> None:
    """Be the other side: the prompt and its next token, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(**asked, do_sample=False, max_new_tokens=1, pad_token_id=0)
    print(tokenizer.decode(found[0]), flush=True)


def timed(words: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """Return (what a process has written, seconds from its start to the first byte of that)."""
    began = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, env=environment) as process:
        assert process.stdout and process.stderr
        first = os.read(process.stdout.fileno(), BLOCK)
        seconds = time.perf_counter() - began
        told, complained = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: {complained.decode()[-2000:]}")
    return (first + told).decode(), seconds


class Side:
    """One way to a first token; `seconds` holds what each start took."""

    def __init__(self, words: list[str], cache: Path | None = None, *, empty: bool = False) -> None:
        self.words, self.cache, self.empty = words, cache, empty
        self.seconds: list[float] = []
        self.texts: set[str] = set()

    def __call__(self) -> None:
        """Start a process and wait for it; its time is up at its first byte."""
        if self.cache and self.empty:
            shutil.rmtree(self.cache, ignore_errors=True)
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        given = dict(os.environ) | quiet
        if self.cache:
            given.pop("JAX_COMPILATION_CACHE_DIR", None)
            given["JAXGEN_CACHE"] = str(self.cache)
        text, seconds = timed(self.words, given)
        self.texts.add(text.strip())
        self.seconds.append(seconds)


def first_token(case: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one case: ours, warm or cold, against transformers."""
    asked = ["generate", str(folder), "--prompt", PROMPT, "--max-new-tokens", "1"]
    ours = [sys.executable, "-m", "jaxgen", *asked, "--temperature", "0"]
    both = {
        "jaxgen": Side(ours, folder.parent / f"cache-{case}", empty=case == "cold"),
        PEER: Side([sys.executable, __file__, "--theirs", str(folder)]),
    }
    for side in both.values():  # fills the page cache and, for the warm case, ours
        side()
        side.seconds.clear()
    sides.in_turn(both, rounds)
    texts = {name: side.texts for name, side in both.items()}
    assert len(set.union(*texts.values())) == 1, texts
    seconds = {name: side.seconds for name, side in both.items()}
    found: dict[str, Any] = {"seconds": {name: sides.figures(of) for name, of in seconds.items()}}
    least = limit(folder)
    found["limit"] = least | {
        "share": round(sum(least.values()) / found["seconds"]["jaxgen"]["median_seconds"], 3)
    }
    return found | {"times_as_fast": sides.ratio(seconds, PEER, "jaxgen")}


def limit(folder: Path) -> dict[str, float]:
    """Return seconds that none can do without: Python's own start, and reading the weights."""
    _, start = sides.once(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
    buffer = bytearray(BLOCK)

    def read() -> None:
        with (folder / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    read()
    return {"python": round(start, 3), "reading": round(sides.once(read)[1], 3)}


def starts(rounds: int) -> dict[str, Any]:
    """Return the seconds of imports, and of our help, each in a process of its own."""
    words = {
        "python": ["-c", ""],
        "import jaxgen": ["-c", "import jaxgen"],
        "jaxgen --help": ["-m", "jaxgen", "--help"],
        "import jax": ["-c", "import jax"],
        "import torch": ["-c", "import torch"],
        "import transformers": ["-c", "from transformers import AutoModelForCausalLM"],
    }
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(run, [sys.executable, *rest]) for name, rest in words.items()
    }
    for call in calls.values():
        call()
    return {"seconds": {n: sides.figures(of) for n, of in sides.in_turn(calls, rounds).items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="gpt2-124m")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--home", type=Path, help="keep the model there, or take it from there")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sides.on_cpu()
    if given.theirs:
        theirs(given.theirs, PROMPT)
        return
    path = sides.RESULTS / "first_token.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    cases = known["cases"] if known.get("size") == given.size else {}
    with tempfile.TemporaryDirectory() as temporary:
        home = given.home or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        folder = home / given.size
        make(folder, given.size)
        for case in given.cases:
            if case == "starts":
                found = starts(given.rounds)
            else:
                found = first_token(case, folder, given.rounds)
                ratio, share = found["times_as_fast"]["of_medians"], found["limit"]["share"]
                told = f"{case}: {ratio} times as fast as {PEER}, {share:.0%} of the limit"
                print(told, file=sys.stderr)
            cases[case] = found | {"environment": sides.environment(PACKAGES)}
    cases = {case: cases[case] for case in CASES if case in cases}
    sides.write("first_token", {"size": given.size, "prompt": PROMPT, "cases": cases})


if __name__ == "__main__":
    main()
