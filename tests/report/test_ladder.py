"""The ladder: which rungs are on the front, what the page says, and one that is climbed."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.cli.app import main
from jaxgen.compress.recipe import split_recipes
from jaxgen.errors import ConfigError
from jaxgen.measure.bootstrap import Estimate
from jaxgen.report import collect, ladder, rungs
from jaxgen.tokens import train as train_tokenizer
from jaxgen.tokens.settings import TokenizerSettings


def rung(name, size, bits):
    ends = {"value": bits, "low": bits - 0.1, "high": bits + 0.1}
    change = {"value": 0.01, "low": 0.0, "high": 0.02}
    more = {"resident": 2**20, "speed": {"1": 10.0, "8": 60.0}, "perplexity": change}
    return {"name": name, "bytes": size, "bits_per_byte": ends, **more}


RUNGS = [rung("as it is", 400, 1.0), rung("good", 100, 1.1), rung("worse", 120, 1.2)]
METRICS = {
    "bits_per_byte": RUNGS[0]["bits_per_byte"],
    "tokens_per_second_8": RUNGS[0]["perplexity"],
}
GENERATORS = {one["name"]: {"about": "", "parameters": None, "metrics": METRICS} for one in RUNGS}
REPORT = {"model": "m<1>", "settings": {"rows": 3}, "rungs": RUNGS, "front": ["as it is", "good"],
          "generators": GENERATORS}  # fmt: skip


def test_the_front_is_what_no_other_rung_beats_in_both():
    assert ladder.front(RUNGS) == ["as it is", "good"]
    assert ladder.front([*RUNGS, rung("best", 90, 0.9)]) == ["best"]
    assert ladder.front([rung("a", 1, 1.0), rung("b", 1, 1.0)]) == ["a", "b"]


def test_the_table_and_the_page_hold_every_rung(monkeypatch):
    text, page = ladder.text(REPORT), ladder.html(REPORT)
    assert text.splitlines()[2].startswith("*  good") and "+1.00 [+0.00, +2.00]" in text
    assert text.splitlines()[3].startswith("   worse")
    assert page.count("<circle") == 3 and "m&lt;1&gt;" in page and "http" not in page
    assert all(f"<h2>{axis}" in page for axis in ("Quality", "Diversity", "Stability", "Speed"))
    for columns, part in ((80, "+1.00 ±1.00"), (40, "bits/byte      1.1000 ±0.1000")):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = ladder.text(REPORT).splitlines()
        assert max(map(len, lines[:-1])) <= columns and any(part in line for line in lines), lines


def test_recipes_are_cut_at_commas_that_no_key_follows():
    assert split_recipes("int8, int4,group=32,act_order=true,nf4") == [
        "int8", "int4,group=32,act_order=true", "nf4",
    ]  # fmt: skip


def test_the_change_of_perplexity_is_that_of_pairs():
    first = np.asarray([100.0, 300.0, 200.0])
    rows = np.zeros((3, 11), int)
    change = rungs.compared(first + 0.1, first, rows, np.asarray([2]))
    assert change["perplexity"]["value"] == pytest.approx(np.expm1(0.01))
    assert change["perplexity"]["high"] - change["perplexity"]["low"] < 1e-9
    assert change["bits_per_byte"]["value"] == pytest.approx(600.3 / np.log(2) / 60)


def test_a_context_without_room_for_a_prompt_is_refused():
    config = jaxgen.ModelConfig(vocab_size=8, context=8, layers=1, d_model=8, heads=1)
    assert rungs.fitting(config.replace(context=10), 256, 32) == (10, 2)
    with pytest.raises(ConfigError, match="context of the model=8 has no room"):
        rungs.fitting(config, 256, 32)


def test_a_ladder_is_climbed_once(tmp_path, monkeypatch, capsys):
    config = jaxgen.ModelConfig(
        vocab_size=260, context=16, layers=1, d_model=64, heads=2, d_ff=64, positions="rope"
    )
    tokenizer = train_tokenizer(TokenizerSettings(kind="bytes"), ())
    params = jaxgen.init(config, jax.random.key(0))
    jaxgen.save(tmp_path / "model", config, params, tokenizer=tokenizer)
    (tmp_path / "on.txt").write_text("All that is to be predicted. " * 40)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rungs, "measure_folder", rungs._measure)
    # Of the report's figures, which have tests of their own, the one that is in the table as well.
    fast = {"token_ms_p50": Estimate(1.0, None, None)}
    likely = lambda one, text, plan, *_: (collect.likelihoods(one, text, plan) | fast, None)  # noqa: E731
    monkeypatch.setattr(rungs, "measure", likely)
    words = ["ladder", str(tmp_path / "model"), "--recipes", "int8", "--rows", "9"]
    words += ["--on", str(tmp_path / "on.txt"), "--new-tokens", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    report = json.loads((tmp_path / "out" / "ladder.json").read_text())
    names = [one["name"] for one in report["rungs"]]
    assert names == ["as it is", "int8"]
    sizes = [one["bytes"] for one in report["rungs"]]
    assert sizes[0] > 3 * sizes[1]
    costs = [abs(one["perplexity"]["value"]) for one in report["rungs"]]
    assert costs[0] == 0 < costs[1] < 0.02
    assert all(one["resident"] != 0 and one["speed"]["8"] > 0 for one in report["rungs"])
    text, *axes = report["generators"].values()
    assert {"distinct_2", "loops"} <= text["metrics"].keys()
    for one, its in zip(report["rungs"], axes, strict=True):
        bits = its["metrics"]["bits_per_byte"]["value"]
        assert bits == pytest.approx(one["bits_per_byte"]["value"], rel=1e-3)
    assert (tmp_path / "out" / "ladder.html").read_text().startswith("<!doctype html>")
    written = (tmp_path / "out" / "int8" / "model.safetensors").stat().st_mtime_ns
    again = {"resident": 1, "speed": {"1": 1.0, "8": 1.0}, "nll": [1.0] * 9, "axes": {}}
    monkeypatch.setattr(rungs, "measure_folder", lambda *_: dict(again))
    assert main(["int8,int8" if w == "int8" else w for w in words]) == 2
    assert main(["int8,int8,tables=plain" if w == "int8" else w for w in words]) == 0
    assert (tmp_path / "out" / "int8,tables=plain").is_dir()
    assert (tmp_path / "out" / "int8" / "model.safetensors").stat().st_mtime_ns == written
    report = json.loads((tmp_path / "out" / "ladder.json").read_text())
    assert report["settings"]["new_tokens"] == 2
    assert main([*words[:-4], "--new-tokens", "99", *words[-2:]]) == 0
    report = json.loads((tmp_path / "out" / "ladder.json").read_text())
    assert report["settings"]["new_tokens"] == 8  # what the context has room for
    other = jaxgen.init(config, jax.random.key(1))
    shutil.rmtree(tmp_path / "model")
    jaxgen.save(tmp_path / "model", config, other, tokenizer=tokenizer)
    capsys.readouterr()
    assert main(words) == 2
    assert "is of another recipe or model, or text (it differs in model)" in capsys.readouterr().err
    (tmp_path / "out" / "int8" / "compress.json").write_text("{}")
    capsys.readouterr()
    assert main(words) == 2
    assert "is of another recipe or model" in capsys.readouterr().err
