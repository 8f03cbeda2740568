"""A tiny corpus, a config that trains in seconds, and the command line: as a process, and here."""

import json
import os
import random
from pathlib import Path

import pytest
from commands import Command

from jaxgen.cli import app
from jaxgen.cli import start as cli_start

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
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def start(tmp_path_factory, cache):
    """Start `jaxgen WORDS...` and return the Command."""
    environment = dict(os.environ) | {
        "JAXGEN_CACHE": str(cache),
        "JAX_PLATFORMS": "cpu",
    }
    # Users have no flags: what is proven here is proven for the program as they run it.
    environment.pop("XLA_FLAGS", None)
    outputs = tmp_path_factory.mktemp("outputs")

    def begin(*words, plant=None):
        output = outputs / f"{len(list(outputs.iterdir()))}.txt"
        output.touch()
        return Command(words, output, environment, plant)

    return begin


@pytest.fixture(scope="session")
def finish(start):
    """Run `jaxgen WORDS...` to its end and return (exit code, what it said)."""

    def end(*words):
        return start(*words).end()

    return end


@pytest.fixture
def here(monkeypatch, capfd, cache):
    """Call `jaxgen WORDS...` in this process, for what ends before it computes much."""
    monkeypatch.setenv("JAXGEN_CACHE", str(cache))
    monkeypatch.setattr(cli_start, "prepare_jax", lambda cache: None)

    def call(*words):
        capfd.readouterr()
        code = app.main([str(word) for word in words])
        shown = capfd.readouterr()
        return code, shown.out + shown.err

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory, config, finish) -> Path:
    """A run that nobody has interrupted; a profile of it must change nothing either."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, said = finish("train", config, "--out", folder, "--profile")
    assert code == 0, said
    return folder
