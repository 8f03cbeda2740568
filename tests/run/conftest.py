"""A tiny corpus, a config that trains in seconds, and the command line as a process."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# fmt: off
WORDS = ["the", "of", "a", "to", "in", "is", "it", "return", "value", "list", "string", "object",
         "number", "function", "class", "if", "for"]
# fmt: on
CONFIG = """
model: {context: 24, layers: 2, d_model: 16, heads: 2, dropout: 0.1}
tokenizer: {kind: bytes}
data: {files: [FILES]}
train: {steps: 120, batch: 8, accumulate: 2, warmup: 5, log_every: 1, validate_every: 40,
  validate_batches: 4}
checkpoint: {every: 20}
sample: {prompts: ["the "], max_new_tokens: 4}
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in range(400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def config(corpus) -> Path:
    path = corpus.parent / "tiny.yaml"
    path.write_text(CONFIG.replace("FILES", str(corpus)))
    return path


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start `jaxgen WORDS...` and return the process."""
    environment = dict(os.environ) | {
        "JAXGEN_CACHE": str(tmp_path_factory.mktemp("cache")),
        "JAX_PLATFORMS": "cpu",
    }
    # Users have no flags: what is proven here is proven for the program as they run it.
    environment.pop("XLA_FLAGS", None)

    def begin(*words, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "jaxgen", *map(str, words)]
        return subprocess.Popen(command, env=environment, **(pipes | options))

    return begin


@pytest.fixture(scope="session")
def finish(start):
    """Run `jaxgen WORDS...` to its end and return (exit code, stdout, stderr)."""

    def end(*words):
        process = start(*words)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    return end


@pytest.fixture(scope="session")
def finished(tmp_path_factory, config, finish) -> Path:
    """A run that nobody has interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = finish("train", config, "--out", folder)
    assert code == 0, out + err
    return folder
