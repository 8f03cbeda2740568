"""`jaxgen report`: every generator on every axis, in JSON, a table and a page that stands alone."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import terminal
from jaxgen.cli import app, start
from jaxgen.report import collect, generators, make, metrics, page, quickstart, table
from jaxgen.report.metrics import METRICS, SCHEMA
from jaxgen.run import inputs
from jaxgen.run.folder import existing_settings
from jaxgen.tokens import load as load_tokenizer

CONFIG = """
model: {context: 24, layers: 1, d_model: 8, heads: 2}
tokenizer: {kind: bytes}
data: {files: [corpus.txt], split: tail, valid_fraction: 0.2}
train: {steps: 2, batch: 2, warmup: 0, validate_every: 2, validate_batches: 1}
"""
FEW = ["--prompts", "3", "--prompt-tokens", "4", "--max-new-tokens", "8", "--seeds", "2"]
UNKNOWN_TO_TEXT = {"train_seconds", "token_joules"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(home)
        m.setenv("JAXGEN_CACHE", str(home / "cache"))
        m.setattr(start, "prepare_jax", lambda cache: None)
        Path("corpus.txt").write_text("".join(f"line {i} of <b>text</b>\n" for i in range(60)))
        Path("tiny.yaml").write_text(CONFIG)
        assert app.main(["train", "tiny.yaml", "--out", "run"]) == 0
        yield home


@pytest.fixture(scope="module")
def found(home):
    assert app.main(["report", "run", "--baselines", "ngram", "--out", "made", *FEW]) == 0
    return json.loads(Path("made/report.json").read_text())


def numbers(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def test_every_generator_has_every_figure(found):
    assert set(SCHEMA) <= {*found, "schema"} and set(found) == {*SCHEMA, "schema"}
    assert list(found["generators"]) == ["held-out text", "run", "ngram"]
    assert set(found["metrics"]) == {metric.key for metric in METRICS}
    for name in ("run", "ngram"):
        figures = found["generators"][name]["metrics"]
        assert set(figures) == set(found["metrics"]), name
        undefined = {key for key, e in figures.items() if e["value"] is None}
        assert undefined <= UNKNOWN_TO_TEXT, name
    assert all(math.isfinite(number) for number in numbers(found))


def test_bits_per_byte_equal_those_of_eval(found, capsys):
    assert app.main(["eval", "run"]) == 0
    own = float(re.search(r"bits per byte +([\d.]+)", capsys.readouterr().out).group(1))
    figures = found["generators"]["run"]["metrics"]["bits_per_byte"]
    assert figures["value"] == pytest.approx(own, abs=1e-4)
    assert figures["low"] <= figures["value"] <= figures["high"]


def test_the_n_gram_beats_a_model_of_two_steps(found):
    assert table.best(found, "bits_per_byte", "less") == "ngram"
    assert found["generators"]["ngram"]["metrics"]["batch_change"]["value"] == 0


def test_the_quickstart_ends_with_an_n_gram_on_the_same_tokens(home, found):
    whole = quickstart.n_gram(Path("run"), cache=home / "cache")
    rows = found["generators"]["ngram"]["metrics"]["bits_per_byte"]["value"]
    # The rows of the report cut its contexts; it reads the documents whole.
    assert whole < rows < whole + 1


@pytest.mark.parametrize("trains", [True, False])
def test_the_quickstart_shows_a_sample_once(home, tmp_path, monkeypatch, capsys, trains):
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "9.txt").write_text("=== The\n ninth")
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "kind": "valid", "bits_per_byte": 2.0}\n')

    def train(*_, **__):
        if trains:
            (samples / "10.txt").write_text("=== The\n tenth")
            print("=== The\n tenth")

    monkeypatch.setattr(quickstart, "train", train)
    monkeypatch.setattr(quickstart, "n_gram", lambda *_, **__: 2.5)
    quickstart.quickstart(tmp_path, (), cache=home / "cache")
    shown = capsys.readouterr().out
    assert shown.count("=== The") == 1 and ("tenth" if trains else "ninth") in shown


def test_the_page_loads_nothing_and_shows_texts_as_text(found, home):
    page = (home / "made/report.html").read_text()
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)
    assert "<b>text" not in page and page.count("<svg") > 20
    for metric in METRICS:
        assert metric.title in page or metric.key in UNKNOWN_TO_TEXT


@pytest.mark.parametrize("width", [160, 120, 80, 70, 60])
def test_tables_keep_names_and_figures_whole_at_every_width(found, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    kinds = ("run", "ngram", "a run with a name that is longer than any column", "hmm")
    generators = dict.fromkeys(("held-out text", *kinds), found["generators"]["run"])
    table.show_all(found | {"generators": generators}, terminal.console())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    figures = found["generators"]["run"]["metrics"]
    for metric in METRICS:
        value = figures[metric.key]
        rows = [line for line in lines if line.startswith(metric.title + "  ")]
        if value["value"] is None:
            assert not rows  # nothing has it
            continue
        written = {form(value) for form in (table.cell, table.half)}
        assert sum(row.count(words) for row in rows for words in written) >= len(generators)
    assert any("±" in line for line in lines) == (width < 160)


def test_a_report_is_printed_and_written_again_without_measuring(
    found, home, capsys, monkeypatch, bucket
):
    capsys.readouterr()
    monkeypatch.setattr(make, "make_report", lambda *_, **__: pytest.fail("measured again"))
    Path("made/report.html").unlink()
    assert app.main(["report", "--from", "made/report.json"]) == 0
    shown = capsys.readouterr().out
    assert "bits per byte" in shown and "wrote made/report.html" in shown
    assert json.loads(Path("made/report.json").read_text()) == found
    assert app.main(["report", "--from", "made", "--out", "copy"]) == 0
    assert Path("copy/report.html").read_text() == Path("made/report.html").read_text()
    assert app.main(["report", "--from", "made", "--out", "gs://bkt/copy"]) == 0
    assert app.main(["report", "--from", "gs://bkt/copy", "--out", "back"]) == 0
    assert json.loads(Path("back/report.json").read_text()) == found


@pytest.mark.parametrize(
    ("content", "words", "code", "part"),
    [
        ("{}", [], 7, "no report.json"),
        ('{"format": 2}', [], 7, "newer jaxgen"),
        ("half a re", [], 7, "no report.json"),
        (None, [], 3, "does not exist"),
        ("{}", ["run"], 2, "leave out run"),
        ("{}", ["--seeds", "9", "--judge", "run"], 2, "leave out --judge --seeds"),
    ],
)
def test_what_is_no_report_is_not_printed_again(home, capsys, content, words, code, part):
    Path("odd.json").unlink(missing_ok=True)
    if content is not None:
        Path("odd.json").write_text(content)
    assert app.main(["report", *words, "--from", "odd.json"]) == code
    assert part in capsys.readouterr().err


def test_what_an_extra_would_add_is_left_out_and_named_once(found, home, capsys, monkeypatch):
    for name in ("bleu", "chrf", "ter"):
        monkeypatch.setitem(sys.modules, f"sacrebleu.metrics.{name}", None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    Path("c.txt").write_text("some words\nother words\n")
    assert app.main(["measure", "c.txt", "--references", "c.txt"]) == 0
    shown = capsys.readouterr().out
    assert "left out: self-BLEU, BLEU, chrF, TER, ROUGE-1, ROUGE-2, ROUGE-L;" in shown
    assert "exact match" in shown and shown.count("jaxgen[eval]") == 1
    shard = inputs.prepare(
        existing_settings(Path("run")), load_tokenizer(Path("run/tokenizer")), home / "cache"
    ).valid
    embed = lambda texts: np.ones((len(texts), 2))  # noqa: E731
    text = collect.Text(shard, shard, load_tokenizer(Path("run/tokenizer")), 24, embed)
    made = collect.compare(["a b", "c d"], ["a b", "c e"], text, collect.Plan())
    assert set(made) == {"meteor", "similarity", "mauve"}
    generators = {
        name: one | {"metrics": {k: e for k, e in one["metrics"].items() if k != "bleu"}}
        for name, one in found["generators"].items()
    }
    assert metrics.left_out(found) == ""
    found = found | {"generators": generators}
    assert metrics.left_out(found) == 'BLEU (pip install "jaxgen[eval]" adds them)'
    assert "BLEU (pip install" in page.html(found)


# The n-gram is in the report above.
@pytest.mark.parametrize("kind, steps", [("hmm", 1), ("maxent", 1), ("template", 1), ("vae", 60)])
def test_a_baseline_reads_rows_as_it_decodes(home, kind, steps, monkeypatch):
    small = {"layers": 1, "d_model": 16, "heads": 2}
    monkeypatch.setattr(generators, "AUTOENCODER", small)
    fit = generators.FIT_OF_VAE
    monkeypatch.setattr(generators, "FIT_OF_VAE", replace(fit, steps=steps, batch=16, rate=0.02))
    tokenizer = load_tokenizer(Path("run/tokenizer"))
    corpus = inputs.prepare(existing_settings(Path("run")), tokenizer, home / "cache")
    one = generators.baseline(kind, generators.Lesson(corpus.train, tokenizer, 24, 0))
    row = corpus.valid.tokens[None, :24].astype(np.int32)

    def both(params, row):
        first, cache = one.prefill(params, row, jnp.asarray([24]), 25)
        whole = jax.nn.log_softmax(one.logits(params, {"tokens": row}))
        return whole[0], one.step(params)(first, cache)[0][0]

    whole, stepped = map(np.asarray, jax.jit(both)(one.params, row))
    np.testing.assert_allclose(whole[-1], stepped, atol=1e-4)
    # It has learned from lines like these: two nats better than chance.
    assert whole[np.arange(23), row[0, 1:]].mean() > 2 - np.log(259)
    assert one.parameters > 1000 and one.train_seconds > 0


def test_files_are_judged_by_the_vectors_of_a_model(home):
    Path("a.txt").write_text("line 1 of text\n\nother words\nline 3\n")
    Path("b.txt").write_text("line 1 of text\nempty is left out\nline 2 of text\nline 3\n")
    figures = {}
    for made in ("a.txt", "b.txt"):
        words = ["measure", made, "--references", "b.txt", "--judge", "run", "--output", "f.json"]
        assert app.main(words) == 0
        figures[made] = json.loads(Path("f.json").read_text())["figures"]
    for name in ("similarity", "MAUVE"):
        assert figures["b.txt"][name]["value"] == pytest.approx(1, abs=1e-5)
    assert figures["a.txt"]["similarity"]["value"] < 0.999


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["report"], "no run is given"),
        (["report", "run", "--baselines", "ngramm"], "did you mean 'ngram'"),
        (["report", "run", "--judge", "none"], "none: no such run, folder or file"),
        (["report", "run", "--max-new-tokens", "99"], "exceed context=24"),
        (["report", "run", "--prompts", "0"], "--prompts=0"),
        (["report", "rum"], "no such run"),
    ],
)
def test_bad_words_are_refused_in_one_line(home, capsys, words, part):
    assert app.main(words) == 2
    assert part in capsys.readouterr().err
