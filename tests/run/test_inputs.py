"""What a run reads is as its tokenizer section says."""

from pathlib import Path

import numpy as np
import pytest

from jaxgen import data
from jaxgen.run import inputs
from jaxgen.run.settings import Settings
from jaxgen.tokens import TokenizerSettings

LINES = [f"The {name} sees {n} other {name}s." for n, name in enumerate(("dog", "Cat", "OX") * 40)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("inputs")
    (home / "lines.txt").write_text("\n\n".join(LINES))
    files = data.DataSettings(files=(str(home / "lines.txt"),), split="tail")

    def prepare(**fields):
        fields = {"vocab_size": 300} | fields
        settings = Settings(tokenizer=TokenizerSettings(**fields), data=files)
        tokenizer = inputs.make_tokenizer(settings)
        corpus = inputs.prepare(settings, tokenizer, Path(home / "cache"), silent=True)
        return tokenizer, np.asarray(corpus.train.tokens), corpus

    return prepare


def test_dropout_and_draws_reach_the_training_tokens_alone(prepared):
    _, plain, corpus = prepared()
    _, drawn, other = prepared(dropout=0.3)
    _, twice, _ = prepared(dropout=0.3, draws=2)
    assert len(plain) < len(drawn) and (twice[: len(drawn)] == drawn).all()
    assert len(twice) > 1.9 * len(drawn)
    assert other.valid.digest == corpus.valid.digest


def test_lowercase_reaches_the_text(prepared):
    (plain, cased, _), (small, lower, _) = prepared(), prepared(lowercase=True)
    assert small.decode(lower.tolist()) == plain.decode(cased.tolist()).lower()
    assert "the" in small.decode(lower.tolist()) and "The" in plain.decode(cased.tolist())
