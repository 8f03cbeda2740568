"""`jaxgen bench` runs the scripts that it names, with what it says."""

import ast
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from jaxgen.cli import bench

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ran(monkeypatch):
    """The commands that would have run, and the folder of their results."""
    found = []

    def run(words, env):
        found.append((Path(words[1]).name, words[2:], env["JAXGEN_RESULTS"]))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "find_spec", lambda name: name)
    return found


def test_bench_runs_what_is_named_in_full_or_in_brief(jaxgen, ran, tmp_path):
    assert jaxgen("bench", "train", "--out", "here").code == 0
    assert ran == [("train_step.py", ["--shape", "gpt2-6x384"], str(tmp_path / "here"))]
    assert jaxgen("bench", "--length", "brief").code == 0
    assert len(ran) == 1 + len(bench.BENCHES)
    assert all("tiny" in words for _, words, _ in ran[1:])
    assert {folder for *_, folder in ran[1:]} == {str(SCRIPTS / "results")}


def test_bench_refuses_unknown_names_missing_peers_and_failures(jaxgen, ran, monkeypatch):
    result = jaxgen("bench", "trian")
    assert result.code == 2 and "did you mean 'train'?" in result.err
    assert ran == []
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    result = jaxgen("bench", "train")
    assert result.code == 3 and "torch not installed" in result.err and "[bench]" in result.err
    assert ran == []
    monkeypatch.setattr(bench, "find_spec", lambda name: name)
    failed = subprocess.CompletedProcess([], 7)
    monkeypatch.setattr(bench.subprocess, "run", lambda *args, **more: failed)
    result = jaxgen("bench", "decode")
    assert result.code == 3 and "decode.py ended with 7" in result.err


def test_the_scripts_have_the_shapes_that_bench_asks_for():
    def keys(script, table):
        body = ast.parse((SCRIPTS / script).read_text()).body
        nodes = [n for n in body if isinstance(n, ast.AnnAssign) and n.target.id == table]
        return {key.value for key in nodes[0].value.keys}

    for one in bench.BENCHES.values():
        option, table = ("--shape", "SHAPES") if "--shape" in one.brief else ("--size", "SIZES")
        for words in (one.full, one.brief):
            assert dict(pairwise(words)).get(option, "tiny") in keys(one.script, table)


@pytest.mark.skipif("JAXGEN_NIGHTLY" not in os.environ, reason="minutes: set JAXGEN_NIGHTLY=1")
@pytest.mark.parametrize("name", ["first-token", "checkpoint", "loader"])
def test_a_brief_run_writes_figures_that_the_table_takes(name, tmp_path, monkeypatch):
    one = bench.BENCHES[name]
    environment = {**os.environ, "JAXGEN_RESULTS": str(tmp_path)}
    command = [sys.executable, str(SCRIPTS / one.script), *one.brief]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import table

    monkeypatch.setattr(table, "RESULTS", tmp_path)
    rows = table.speed().splitlines()[2:]
    assert len(rows) >= 2 and all(row.count("|") == 7 for row in rows)
