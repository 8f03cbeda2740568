"""Whole explanations: data for programs, a page that needs nothing else, one-line refusals."""

import json

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli.app import main
from jaxgen.data.copies import index_copies
from jaxgen.errors import ConfigError
from jaxgen.explain import page
from jaxgen.explain.decode_trace import trace
from jaxgen.explain.explanation import explain
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt, session_of
from jaxgen.tokens.plain import Bytes

SIZES = {"vocab_size": 259, "context": 32, "layers": 1, "d_model": 8, "heads": 2, "init_std": 0.3}
RULES = Generation(max_new_tokens=3, top_k=5, suppress_ids=tuple(range(127, 259)), seed=3)


def model(start=None, labels=(), **fields):
    config = jaxgen.ModelConfig(**SIZES, **fields)
    return LoadedModel(config, random_params(config), Bytes(), start, labels)


@pytest.fixture(scope="module")
def made():
    index = index_copies([np.frombuffer(b"a tale of abc and more", np.uint8).astype(np.int64)])
    return explain(model(), "abc", settings=RULES, tokens=2, index=index, name="<small>")


def test_an_explanation_holds_what_was_generated_and_sums_to_it(made):
    data = json.loads(json.dumps(made.data, allow_nan=False))
    text = trace(session_of(model()), Prompt("abc", RULES)).text
    assert data["trace"]["text"] == text and "".join(data["tokens"][1:]) == "abc" + text
    assert [one["place"] for one in data["explained"]] == [4, 5]  # after the mark that begins it
    steps = data["trace"]["steps"]
    for row in range(2):
        own = data["attributions"]["integrated_gradients"]
        total = own["score"][row] - own["baseline"][row]
        assert abs(sum(own["values"][row]) - total) < 1e-3 * abs(total)
        np.testing.assert_allclose(own["score"][row], steps[row]["logprob"][0], rtol=1e-3)
        np.testing.assert_allclose(data["lens"]["target"][-1][row], own["score"][row], rtol=1e-3)
        rollout = data["attributions"]["rollout"]["values"][row]
        np.testing.assert_allclose(sum(rollout), 1, rtol=1e-3)
        direct = data["direct"]
        parts = direct["embedded"][row] + direct["bias"][row]
        parts += np.sum(np.asarray(direct["heads"])[:, row]) + np.sum(
            np.asarray(direct["feed"])[:, row]
        )
        np.testing.assert_allclose(parts, direct["logit"][row], atol=1e-3)
    assert len(data["heads"]) == 2 and data["memory"]["copies"] is not None


def test_its_page_needs_nothing_else_and_shows_every_part(made):
    text = made.html()
    assert len(text) < 100_000 and "&lt;small&gt;" in text and "<small>" + "&lt;" not in text
    for part in ("<script", "http:", "https:", "@import", "url("):
        assert part not in text
    for part in (
        *("owes to the others", "How each token was chosen", "top_k", "layers would say"),
        *("add to the logit", "nearest training text", "data:image/png", "Occlusion: faithful"),
    ):
        assert part in text, part
    assert made._repr_html_().startswith("<iframe srcdoc=") and "<main>" not in made._repr_html_()


def test_a_page_that_would_be_too_large_shows_fewer_tokens(made, monkeypatch):
    whole = made.html()
    monkeypatch.setattr(page, "LARGEST", len(whole) - 1)
    assert "The first 1 of 2 tokens" in made.html() and len(made.html()) < len(whole)


def test_a_class_and_a_source_are_explained():
    labels = {"topology": "encoder", "head": "classes", "classes": 2}
    of_class = explain(
        model(labels=("no", "yes"), **labels), "ab", target="yes", methods=("rollout",)
    )
    assert [one["text"] for one in of_class.data["explained"]] == ["yes"]
    assert of_class.data["attributions"]["rollout"]["values"][0][0] > 0 and of_class.html()
    towers = model(start=1, topology="encoder_decoder", positions="relative")
    read = explain(towers, "ab", target="c", methods=("value_rollout",))
    assert read.data["num_source"] == len(read.data["tokens"]) - 2
    values = read.data["attributions"]["value_rollout"]["values"][0]
    assert len(values) == read.data["num_source"] + 1 and min(values) > 0
    assert read.data["direct"]["heads"] and read.html()


def test_a_model_without_attention_has_lenses_and_gradients():
    delta = jaxgen.Delta(key_heads=1, value_heads=2, key_width=4, value_width=4)
    kinds = {"state": jaxgen.LayerKind(mixer="delta")}
    made = model(pattern=("state",), kinds=kinds, delta=delta, positions="none")
    out = explain(made, "ab", target="c", methods=("gradient_x_input",))
    assert out.data["lens"] and "no attention" in out.data["no_direct"] and out.html()
    with pytest.raises(ConfigError, match="no attention"):
        explain(made, "ab", target="c", methods=("rollout",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    config = jaxgen.ModelConfig(**SIZES)
    jaxgen.save(path, config, random_params(config), tokenizer=Bytes())
    return path


def test_the_verb_writes_both_files(folder, capsys):
    words = ["--prompt", "ab", "--target", "c", "--methods", "occlusion"]
    assert main(["explain", str(folder), *words]) == 0
    out = folder / "explanation"
    data = json.loads((out / "explanation.json").read_text())
    assert data["explained"] == [{"place": 3, "text": "c"}] and data["trace"] is None
    assert (out / "explanation.html").read_text().startswith("<!doctype html>")
    assert "explanation.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "a", "--methods", "oclusion"], "did you mean 'occlusion'"),
        (["--prompt", "a", "--target", "b", "--top-k", "2"], "--target is explained as it stands"),
        (["--prompt", "a", "--target", "b" * 40], "42 tokens, more than 32"),
        (["--prompt", "a", "--target", ""], "target=''"),
        (["--prompt", "a", "--tokens", "0"], "tokens"),
        (["--prompt", "a", "--beams", "2"], "drawn token by token"),
        (["--prompt", "a", "--memory"], "is no run with training text"),
    ],
)
def test_mistakes_are_one_line(folder, words, message, capsys):
    assert main(["explain", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_a_label_that_is_none_is_refused_with_the_nearest():
    labels = {"topology": "encoder", "head": "classes", "classes": 2}
    with pytest.raises(ConfigError, match=r"target=yess is no label.*yes"):
        explain(model(labels=("no", "yes"), **labels), "ab", target="yess")
