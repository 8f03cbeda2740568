"""Whole explanations: data for programs, a page that needs nothing else, one-line refusals."""

import base64
import json
import zlib
from html import escape

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli.app import main
from jaxgen.data.copies import index_copies
from jaxgen.errors import ConfigError
from jaxgen.explain import page
from jaxgen.explain.attention import attention_maps, rollout
from jaxgen.explain.decode_trace import trace
from jaxgen.explain.explanation import explain
from jaxgen.explain.scores import no_text, token_scores
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.prompts import ids_of
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt, session_of
from jaxgen.tokens.plain import Bytes, Chars

SIZES = {"vocab_size": 259, "context": 32, "layers": 1, "d_model": 8, "heads": 2, "init_std": 0.3}
RULES = Generation(max_new_tokens=3, top_k=5, suppress_ids=tuple(range(127, 259)), seed=3)


def model(start=None, labels=(), **fields):
    config = jaxgen.ModelConfig(**SIZES, **fields)
    return LoadedModel(config, random_params(config), Bytes(), start, labels)


@pytest.fixture(scope="module")
def explanation():
    index = index_copies([np.frombuffer(b"a tale of abc and more", np.uint8).astype(np.int64)])
    return explain(model(), "abc", settings=RULES, tokens=2, index=index, name="<small>")


def test_an_explanation_holds_what_was_generated_and_sums_to_it(explanation):
    data = json.loads(json.dumps(explanation.data, allow_nan=False))
    traced = trace(session_of(model()), Prompt("abc", RULES))
    text = traced.text
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
    added = sorted(data["direct"]["heads"][0][0], key=abs, reverse=True)
    np.testing.assert_allclose([head["amount"] for head in data["heads"]], added, rtol=1e-4)
    ids = np.asarray([traced.ids + tuple(traced.tokens)])[:, :5]
    (layer,) = attention_maps(model().params, model().config, ids)
    for head in data["heads"]:
        wanted = layer.heads[0, head["head"]]
        np.testing.assert_allclose(np.asarray(head["probs"])[:5, :5], wanted, rtol=1e-3, atol=1e-5)


def test_its_page_needs_nothing_else_and_shows_every_part(explanation):
    text = explanation.html()
    assert len(text) < 100_000 and "&lt;small&gt;" in text and "<small>" + "&lt;" not in text
    for part in ("<script", "http:", "https:", "@import", "url("):
        assert part not in text
    for part in (
        *("owes to the others", "How each token was chosen", "top_k", "layers would say"),
        *("add to the logit", "nearest training text", "data:image/png", "Occlusion: faithful"),
    ):
        assert part in text, part
    # Each text ends with the token that is explained, and no more rows are shown than were asked.
    assert text.count("</u></div>") == text.count("class=heat") == 2 * 3
    assert text.count("<tr><td><b>") == 2 and "The first 2 of 3 tokens" in text
    assert text.count("<details open>") == 2 and text.count("<details>") == 2 * 2
    assert (
        explanation._repr_html_().startswith("<iframe srcdoc=")
        and "<main>" not in explanation._repr_html_()
    )


def test_heat_is_blue_for_what_raises_a_score_and_orange_for_what_lowers_it(explanation):
    data = json.loads(json.dumps(explanation.data))
    data["tokens"][1:4] = ["<a>", "b", "c"]
    for attribution in data["attributions"].values():
        attribution["values"] = [[0.0, 0.5, -1.0, 0.01, 0.0, 0.0]] * 2
    text = page.html(data)
    heat = f"<b class=p4>&lt;a&gt;</b><b class=n9>b</b>c<u>{escape(data['tokens'][4])}</u></div>"
    assert text.count(heat) == 3
    layers = text.split("layers would say")[1].split("</table>")[0]
    assert "<tr><td>1" in layers and "<tr><td>0" in layers
    png = base64.b64decode(page._image(np.array([[2.0, -1.0]])).split("base64,")[1].split("'")[0])
    pixels = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    assert pixels == b"\0" + bytes([*page.FOR, 255, *page.AGAINST, round(255 * 0.5**0.7)])


def test_a_page_that_would_be_too_large_shows_fewer_tokens(explanation, monkeypatch):
    whole = explanation.html()
    monkeypatch.setattr(page, "LARGEST", len(whole) - 1)
    assert "The first 1 of 2 tokens" in explanation.html() and len(explanation.html()) < len(whole)


def test_a_class_and_a_source_are_explained():
    labels = {"topology": "encoder", "head": "classes", "classes": 2}
    of_class = explain(
        model(labels=("no", "yes"), **labels), "ab", target="yes", methods=("rollout",)
    )
    assert [one["text"] for one in of_class.data["explained"]] == ["yes"]
    classifier = model(labels=("no", "yes"), **labels)
    ids = np.asarray([ids_of(classifier, "ab")])
    wanted = rollout(attention_maps(classifier.params, classifier.config, ids))[0, 0]
    values = of_class.data["attributions"]["rollout"]["values"][0]
    np.testing.assert_allclose(values, wanted, rtol=1e-3)
    assert of_class.html()
    for unread in ({"tokens": 2}, {"settings": RULES}):
        with pytest.raises(ConfigError, match=f"{next(iter(unread))}: this model gives a class"):
            explain(classifier, "ab", **unread)
    towers = model(start=1, topology="encoder_decoder", positions="relative")
    read = explain(towers, "ab", target="c", methods=("value_rollout",))
    assert read.data["num_source"] == len(read.data["tokens"]) - 2
    values = read.data["attributions"]["value_rollout"]["values"][0]
    assert len(values) == read.data["num_source"] + 1 and min(values) > 0
    assert read.data["direct"]["heads"] and read.html()


@pytest.mark.parametrize("kind", ["tokens", "mean"])
def test_values_are_of_the_difference_to_the_baseline_in_float32(kind):
    question, methods = model(compute_dtype="bfloat16"), ("gradient_x_input",)
    config, params = question.config.replace(compute_dtype="float32"), question.params
    score, embeds = token_scores(params, config, [*ids_of(question, "ab"), ord("c")])
    nothing = no_text(params, config, 3, baseline=kind)
    wanted = [score(embeds[None])[0, 0], score(nothing)[:, 0].mean()]
    out = explain(question, "ab", target="c", methods=methods, baseline=kind)
    own = out.data["attributions"]["gradient_x_input"]
    np.testing.assert_allclose(np.ravel([own["score"], own["baseline"]]), wanted, rtol=1e-4)


class Lossy(Chars):
    """Spells the characters that it has, and nothing for others."""

    def encode(self, text: str) -> list[int]:
        return super().encode("".join(one for one in text if one in self.characters))


def test_a_target_that_the_vocabulary_loses_letters_of_is_refused():
    config = jaxgen.ModelConfig(**SIZES)
    small = LoadedModel(config, random_params(config), Lossy("abc"), None, ())
    with pytest.raises(ConfigError, match="target='bx' is not in the vocabulary"):
        explain(small, "ab", target="bx", methods=("occlusion",))


def test_the_longest_copy_comes_first():
    index = index_copies([np.frombuffer(b"a tale of abc and more", np.uint8).astype(np.int64)])
    methods = ("gradient_x_input",)
    out = explain(model(), "a", target="f ab, and mo", methods=methods, index=index)
    assert [copy["text"] for copy in out.data["memory"]["copies"]] == [" and mo", "f ab"]


def test_fewer_tokens_than_were_asked_for_are_said():
    with pytest.warns(UserWarning, match="tokens=4: only 2 were generated"):
        out = explain(model(), "a" * 29, tokens=4, methods=("gradient_x_input",))
    assert len(out.data["explained"]) == 2


def test_a_model_without_attention_has_lenses_and_gradients():
    delta = jaxgen.Delta(key_heads=1, value_heads=2, key_width=4, value_width=4)
    kinds = {"state": jaxgen.LayerKind(mixer="delta")}
    stateful = model(pattern=("state",), kinds=kinds, delta=delta, positions="none")
    out = explain(stateful, "ab", target="c", methods=("gradient_x_input",))
    assert out.data["lens"] and "no attention" in out.data["no_direct"] and out.html()
    with pytest.raises(ConfigError, match="no attention"):
        explain(stateful, "ab", target="c", methods=("rollout",))


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
        (["--prompt", "a", "--target", "b", "--top-k", "2"], "is explained as it stands"),
        (["--prompt", "a", "--target", "b" * 40], "42 tokens, more than 32"),
        (["--prompt", "a", "--target", ""], "target is empty"),
        (["--prompt", "a", "--target", "bc", "--tokens", "3"], "tokens=3 is more than"),
        (["--prompt", "a", "--tokens", "3", "--max-new-tokens", "2"], "--max-new-tokens=2"),
        (["--prompt", "a", "--methods", ","], "methods is empty"),
        (["--prompt", "a", "--tokens", "0"], "tokens"),
        (["--prompt", "a", "--beams", "2"], "--beams=2: a trace follows one text"),
        (["--prompt", "a", "--memory"], "is no run with training text"),
    ],
)
def test_mistakes_are_one_line(folder, words, message, capsys):
    assert main(["explain", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_a_folder_that_can_not_be_written_is_refused_before_anything_is_computed(folder, capsys):
    words = ["explain", str(folder), "--prompt", "a", "--methods", "none"]  # refused as it starts
    assert main([*words, "--out", "/proc/none"]) == 3
    assert "--out /proc/none" in capsys.readouterr().err
    assert main([*words, "--out", str(folder / "new")]) == 2 and not (folder / "new").exists()


def test_a_label_that_is_none_is_refused_with_the_nearest():
    labels = {"topology": "encoder", "head": "classes", "classes": 2}
    with pytest.raises(ConfigError, match=r"target=yess is no label.*yes"):
        explain(model(labels=("no", "yes"), **labels), "ab", target="yess")
