"""Attacks keep to their limits, and say of a text what the classifier says of it."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tokens
from jaxgen.cli import app, start
from jaxgen.cli import attack as verb
from jaxgen.data.augment.words import neighbours_of, split, words_of
from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.tasks.attack import AttackResult, AttackSettings, attack, summary

TEXTS = [
    f"{who} {does} the {how} {what} by the river, and then walks {where}!"
    for who in ("Ada", "Bob", "Eve")
    for does in ("sees", "buys")
    for how in ("red", "green")
    for what, where in (("boat", "home"), ("car", "away"))
]
LABELS = ("bad", "good")
NEAR = neighbours_of(TEXTS)


@pytest.fixture(scope="module")
def model():
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bpe", vocab_size=320), TEXTS)
    config = jaxgen.ModelConfig(
        vocab_size=tokenizer.vocab_size, context=64, layers=1, d_model=16, heads=2,
        topology="encoder", head="classes", classes=2,
    )  # fmt: skip
    params = random_params(config)
    params["head"]["out"] = params["head"]["out"] * 200
    model = LoadedModel(config, params, tokenizer, None, LABELS)
    chances = [dict(row)["good"] for row in tasks.classify(model, TEXTS, batch=16)]
    odds = np.median(np.log(chances) - np.log1p(-np.array(chances)))
    bias = params["head"]["out_bias"] - np.array([0, odds], np.float32)  # as many bad as good
    return replace(model, params={**params, "head": {**params["head"], "out_bias": bias}})


@pytest.fixture(scope="module")
def labels(model):
    """The class that the model tells of each text: the label, but for the last text."""
    best = [LABELS.index(row[0][0]) for row in tasks.classify(model, TEXTS, batch=16)]
    return [*best[:-1], 1 - best[-1]]


def settings(**more):
    return AttackSettings(**{"similarity": -1.0, "edits": 0.4, "batch": 64, "candidates": 6} | more)


@pytest.mark.parametrize("method", ["greedy", "beam", "hotflip"])
def test_an_attack_keeps_to_its_limits_and_tells_the_truth(model, labels, method):
    keep = frozenset({"river", "ada"})
    results = attack(model, TEXTS, labels, NEAR, settings(method=method, keep=keep))
    again = tasks.classify(model, [one.other for one in results], batch=16)
    assert any(one.success for one in results)
    for one, text, label, classes in zip(results, TEXTS, labels, again, strict=True):
        assert (one.text, one.label, LABELS[one.after]) == (text, label, classes[0][0])
        np.testing.assert_allclose(one.chance, dict(classes)[LABELS[label]], rtol=1e-4)
        old, new = split(text), split(one.other)
        assert old[::2] == new[::2]
        swaps = [
            (n, a, b) for n, (a, b) in enumerate(zip(old[1::2], new[1::2], strict=True)) if a != b
        ]
        assert swaps == sorted(one.swaps) and len(swaps) <= max(int(0.4 * len(words_of(text))), 1)
        for _, a, b in swaps:
            assert a.lower() not in keep and a[0].isupper() == b[0].isupper()
            assert b.lower() in {word for word, _ in NEAR.near(a, 6)}
    assert not results[-1].attacked and results[-1].other == TEXTS[-1] and results[-1].queries == 0
    figures = summary(results, 2.0)
    assert figures["accuracy"] == 23 / 24 and figures["success_rate"] > figures["edits"] > 0
    queries = sum(one.queries for one in results)
    np.testing.assert_allclose(figures["queries_per_second"], (queries + 24) / 2)


def test_one_swap_is_the_best_of_the_word_that_the_label_needs_most(model, labels):
    for one in attack(model, TEXTS[:3], labels[:3], NEAR, settings(edits=0.01)):
        pieces, right = split(one.text), LABELS[one.label]
        places = range(1, len(pieces), 2)

        def chances(texts, right=right):
            return [dict(row)[right] for row in tasks.classify(model, texts, batch=64)]

        left = chances(["".join((*pieces[:n], *pieces[n + 1 :])).strip() for n in places])
        place = places[int(np.argmin(left))]
        like = str.capitalize if pieces[place][0].isupper() else str
        tried = [
            "".join((*pieces[:place], like(word), *pieces[place + 1 :]))
            for word, _ in NEAR.near(pieces[place], 6)
        ]
        best, whole = min(chances(tried)), chances([one.text])[0]
        np.testing.assert_allclose(one.chance, min(best, whole), rtol=1e-4)
        assert len(one.swaps) == (best < whole)


def test_a_beam_of_one_is_greedy_and_a_wider_one_asks_more(model, labels):
    greedy, one, wide = (
        attack(model, TEXTS, labels, NEAR, settings(**how))
        for how in ({}, {"method": "beam", "beam": 1}, {"method": "beam", "beam": 3})
    )
    assert greedy == one
    assert sum(x.success for x in wide) >= sum(x.success for x in greedy)


def test_every_limit_changes_the_attack(model, labels):
    plain = attack(model, TEXTS, labels, NEAR, settings())
    changes = {
        "method": "hotflip",
        "candidates": 2,
        "similarity": 0.9,
        "edits": 0.1,
        "keep": frozenset({"the", "by", "and", "red", "green", "boat", "car"}),
    }
    for name, value in changes.items():
        assert attack(model, TEXTS, labels, NEAR, settings(**{name: value})) != plain, name
    assert {f.name for f in fields(AttackSettings)} == {*changes, "beam", "batch"}


def test_models_that_cannot_be_attacked_are_refused(model):
    for other, part in (
        (replace(model, config=model.config.replace(head="mlm", classes=None)), "classes"),
        (replace(model, generation_config=GenerationConfig(problem_type="regression")), "exclude"),
    ):
        with pytest.raises(ConfigError, match=part):
            attack(other, TEXTS, [0] * len(TEXTS), NEAR)
    with pytest.raises(ConfigError, match="edits=0"):
        AttackSettings(edits=0)


def test_the_verb_shows_texts_side_by_side_and_as_json(
    model, labels, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(start, "prepare_jax", lambda *args: None)
    monkeypatch.setattr("jaxgen.text.loaded_model.open_model", lambda *args, **more: model)
    monkeypatch.setattr("jaxgen.cli.paths.adapted", lambda *args: (tmp_path, None, ()))
    file = tmp_path / "test.jsonl"
    rows = [{"text": t, "label": LABELS[n]} for t, n in zip(TEXTS, labels, strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["attack", "runs/x", "--data", str(file), "--similarity", "-1", "--edits", "0.4"]
    for columns in ("80", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        assert app.main([*words, "--examples", "1"]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= int(columns)
        assert shown.count("*") >= 4 and (" | " in shown) == (columns == "80")
        assert "success of the attack" in shown
    assert app.main([*words, "--json", "--limit", "5"]) == 0
    told_json = json.loads(capsys.readouterr().out)
    assert told_json["texts"] == 5 == len(told_json["results"])
    one = next(row for row in told_json["results"] if row["success"])
    assert one["swaps"][0]["old"] in one["text"] and one["swaps"][0]["new"] in one["attacked"]
    for more, part in (
        (["--beam", "3"], "--beam 3 has no effect with --method greedy"),
        (["--fields", "text"], "must be two names"),
        (["--vectors", str(tmp_path / "none")], "none: no such"),
    ):
        assert app.main([*words, *more]) in (2, 4)
        assert part in capsys.readouterr().err
    file.write_text('{"text": "one two", "label": "goood"}\n')
    assert app.main(words) == 7
    assert "no class 'goood' (did you mean 'good'?)" in capsys.readouterr().err


def test_a_narrow_terminal_has_the_texts_above_one_another():
    result = AttackResult("one two", 0, 0, "one three", 1, 0.2, ((1, "two", "three"),))
    assert verb.side_by_side(result, LABELS, 20) == ["[bad]", "one *two*", "[good]", "one *three*"]
    assert verb.side_by_side(result, LABELS, 80)[1].split(" | ")[1] == "one *three*"
