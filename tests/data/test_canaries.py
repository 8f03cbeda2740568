"""Canaries: a function of their settings, planted by rate, in the training text alone."""

from dataclasses import fields, replace

import numpy as np
import pytest

from jaxgen import data, tokens
from jaxgen.data.canaries import (
    CanarySettings,
    canary_documents,
    canary_texts,
    other_texts,
    planted,
)
from jaxgen.errors import ConfigError

MANY = CanarySettings(number=400, rate=0.25, seed=3)


def test_secrets_are_distinct_and_a_function_of_the_settings():
    texts = canary_texts(MANY)
    assert len(set(texts)) == 400
    assert texts == canary_texts(MANY) != canary_texts(CanarySettings(number=400, seed=4))
    assert abs(planted(MANY).mean() - 0.25) < 0.08


@pytest.mark.parametrize(
    ("digits", "count", "number"), [(9, 300, 300), (3, 300, 300), (3, 990, 900)]
)
def test_other_secrets_are_none_of_the_canaries_and_all_there_are_if_few(digits, count, number):
    settings = CanarySettings(number=100, digits=digits)
    others = other_texts(settings, count)
    assert len(set(others)) == len(others) == number
    assert not set(others) & set(canary_texts(settings))


OPTIONS = {"number": 30, "rate": 0.9, "repeats": 2, "text": "<{secret}>", "digits": 4, "seed": 1}


def test_each_option_changes_what_is_planted():
    assert OPTIONS.keys() == {field.name for field in fields(CanarySettings)}
    some = CanarySettings(number=20)
    for name, value in OPTIONS.items():
        changed = canary_documents(replace(some, **{name: value}))
        assert list(changed) != list(canary_documents(some)), name


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_what_is_planted_is_training_text_and_nothing_else_moves(tmp_path, split):
    path = tmp_path / "text.txt"
    path.write_text("some text of a few words. " * 40)
    own = CanarySettings(number=20, repeats=2, text="<{secret}>", digits=4)
    more = {"split": split} if split == "tail" else {"split": split, "valid_fraction": 0.0}
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    plain, with_canaries = (
        data.prepare(
            data.DataSettings(files=(str(path),), test_fraction=0.0, canaries=canaries, **more),
            *(tokenizer, tmp_path / "cache"),
        )
        for canaries in (CanarySettings(), own)
    )
    wanted = [t for t, inside in zip(canary_texts(own), planted(own), strict=True) if inside]
    added = len(with_canaries.train.tokens) - len(plain.train.tokens)
    words = tokenizer.decode(with_canaries.train.tokens[-added:].tolist())
    assert words == "".join(text * 2 for text in wanted)
    assert np.array_equal(plain.valid.tokens, with_canaries.valid.tokens)
    assert plain.digest != with_canaries.digest
    said = f"canaries: {len(wanted)} of 20 made-up secrets are planted in the training text, 2 "
    assert with_canaries.notes[-1].startswith(said)
    assert not any("canaries" in note for note in plain.notes)


@pytest.mark.parametrize(
    "wrong",
    [{"number": -1}, {"rate": 0.0}, {"rate": 1.5}, {"repeats": 0}, {"text": "no secret"},
     {"digits": 0}, {"digits": 1, "number": 6}, {"seed": -1}],
)  # fmt: skip
def test_what_can_not_be_planted_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CanarySettings(**wrong)


def test_only_plain_text_has_canaries(tmp_path):
    settings = data.DataSettings(
        files=(str(tmp_path),), sides=("a", "b"), canaries=CanarySettings(number=4)
    )
    with pytest.raises(ConfigError, match="number=4 plants plain text, not pairs"):
        data.prepare(
            settings,
            tokens.train(tokens.TokenizerSettings(kind="bytes"), ()),
            tmp_path / "cache",
            form="pairs",
        )
