"""`verify resume`: the proof holds for the run as it is, and a planted difference is named."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import forked
import jax
import jax.numpy as jnp
import pytest

from jaxgen import run as runs
from jaxgen.cli import app, verify_stage
from jaxgen.cli import start as cli_start
from jaxgen.data import loader
from jaxgen.run import step as steps
from jaxgen.store import Checkpoints
from jaxgen.train.step import train_step
from jaxgen.verify import resume, stage

CONFIG = """
model: {context: 12, layers: 1, d_model: 8, heads: 2, dropout: 0.1}
tokenizer: {kind: bytes}
data: {files: [FILE], split: tail, valid_fraction: 0.2, test_fraction: 0.0}
train: {steps: 6, batch: 4, warmup: 2, validate_every: 6, validate_batches: 1}
checkpoint: {every: 2}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    text = "".join(f"the value of line {i} is {i * i}\n" for i in range(400))
    (folder / "text.txt").write_text(text)
    (folder / "tiny.yaml").write_text(CONFIG.replace("FILE", str(folder / "text.txt")))
    return folder


COMPILED = {}


def here(folder, name, until):
    """A stage in this process, its state made anew or loaded from the disk; left is killed."""
    run, task = stage.make_run(folder, name)
    if steps.train_step is train_step:  # then one compiled step is as good as another
        run.__dict__["step"] = COMPILED.setdefault("step", run.step)
    made = []
    for row in stage.rows(run, task, name):
        made.append(row)
        if until is not None and until(row):
            break
    return made


def prove(home, launch, source=None, **options):
    settings = runs.read_settings(home / "tiny.yaml")
    options = {"steps": 4, "mesh": None} | options
    return resume.resume(settings, source=source, cache=home / "cache", launch=launch, **options)


@pytest.fixture(scope="module")
def proven(home, tmp_path_factory):
    """The proof of a new run, its rows, and the folder in which only the last stage is left."""
    kept, rows = tmp_path_factory.mktemp("kept"), {}

    def launch(folder, name, until):
        rows[name] = here(folder, name, until)
        if name == "killed":
            shutil.copytree(folder, kept, dirs_exist_ok=True)
        return rows[name]

    return prove(home, launch), rows, kept


@pytest.fixture
def trained(proven, tmp_path):
    """The folder of a run with a checkpoint of step 2."""
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "tokenizer", "checkpoints"):
        kept = proven[2] / name
        (shutil.copytree if kept.is_dir() else shutil.copyfile)(kept, tmp_path / "run" / name)
    return tmp_path / "run"


def restored_again(proven):
    """The proof with the last stage made once more, which may have been planted."""
    _, rows, kept = proven
    restored = here(kept, "restored", None)
    return resume.compare(rows["whole"], rows["killed"], restored, saved=2, same_mesh=True)


def test_a_run_that_is_restored_is_the_same_to_the_last_bit(proven):
    found, rows, _ = proven
    assert found.difference is None and found.saved == 2
    assert [line.step for line in found.steps] == [0, 1, 2, 3, 4]
    assert [line.killed for line in found.steps] == ["equal"] * 4 + [""]
    assert [line.restored for line in found.steps] == ["", "", "loaded, equal", "equal", "equal"]
    assert len({line.state for line in found.steps}) == 5
    assert len({line.rng for line in found.steps}) == 5
    assert len(rows["whole"][1]["data"]) == 4
    assert {"params/embed/tokens", "key", "step"} <= rows["whole"][1]["leaves"].keys()


def test_an_order_of_data_that_depends_on_the_process_is_named(proven, monkeypatch):
    genuine, made = loader.Order.__getitem__, []

    def by_history(order, index):
        made.append(index)
        return genuine(order, len(made) - 1)

    monkeypatch.setattr(loader.Order, "__getitem__", by_history)
    found = restored_again(proven)
    assert "step 3, the restored process: its data differ: row 0 of the batch" in found.difference
    assert found.steps[-1].restored == "differs" and found.steps[-1].step == 3


def test_data_that_a_process_draws_for_itself_are_named(proven, monkeypatch):
    genuine = loader.Order.__getitem__

    def masked(order, index):
        batch = dict(genuine(order, index))
        batch["tokens"] = batch["tokens"].copy()
        batch["tokens"][0, 3] = 1 + os.getpid() % 7
        return batch

    monkeypatch.setattr(loader.Order, "__getitem__", masked)
    assert "the same rows of the text give other tokens" in restored_again(proven).difference


def test_randomness_that_depends_on_the_process_is_named(proven, monkeypatch):
    genuine = steps.train_step

    def by_history(state, batch, **options):
        elsewhere = replace(state, key=jax.random.fold_in(state.key, 12345))
        after, metrics = genuine(elsewhere, batch, **options)
        return replace(after, key=state.key), metrics

    monkeypatch.setattr(steps, "train_step", by_history)
    said = restored_again(proven).difference
    assert "step 3, the restored process: the loss is" in said
    assert "with the same data and random key; optimizer/" in said or "params/" in said


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda state: replace(state, key=jax.random.key(9)), "the random key differs: it is "),
        (
            lambda state: replace(state, optimizer=jax.tree.map(jnp.zeros_like, state.optimizer)),
            "optimizer/",
        ),
    ],
)
def test_what_a_checkpoint_does_not_give_back_is_named_before_a_step_is_made(
    proven, monkeypatch, plant, said
):
    genuine = Checkpoints.restore

    def forgetful(store, *given, **options):
        restored = genuine(store, *given, **options)
        return replace(restored, tree=plant(restored.tree))

    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    _, rows, kept = proven
    run, task = stage.make_run(kept, "restored")
    first = next(stage.rows(run, task, "restored"))
    found = resume.compare(rows["whole"], rows["killed"], [first], saved=2, same_mesh=True)
    assert found.difference.startswith("step 2, as it was restored: ") and said in found.difference


def test_a_loss_on_another_mesh_may_round_but_no_more(proven):
    _, rows, _ = proven
    there = rows["whole"][3]
    near = there | {"loss": there["loss"] * (1 + 3e-6), "leaves": rows["whole"][2]["leaves"]}
    assert resume.differs(there, near, exact=False) is None
    assert "the loss is" in resume.differs(there, near, exact=True)
    far = there | {"loss": there["loss"] * (1 + 3e-5)}
    assert "the loss is" in resume.differs(there, far, exact=False)
    assert "the loss is" in resume.differs(there, there | {"loss": float("nan")}, exact=False)


def test_real_processes_prove_a_run_on_another_mesh_and_leave_it_alone(home, trained):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in trained.rglob("*") if p.is_file()}
    environment = dict(os.environ) | {"JAXGEN_CACHE": str(home / "cache")}
    words = ["verify", "resume", trained, "--steps", "2", "--mesh", "data:2"]
    code, said = forked.program(["-m", "jaxgen", *words], environment).end()
    assert code == 0, said
    assert "proof: saved at step 3, killed after step 4" in said
    assert "loaded, equal" in said and "apart" in said
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in trained.rglob("*") if p.is_file()}
    assert after == before
    assert not list(Path(home / "cache").glob("verify-*"))


def test_a_difference_ends_with_1_and_a_stage_that_fails_with_its_own_code(
    home, monkeypatch, capsys
):
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    monkeypatch.setattr(cli_start, "prepare_jax", lambda cache: None)
    row = {"step": 0, "rng": ["aa", "bb"], "leaves": {}}
    rows = {
        "whole": [row, row | {"step": 1, "loss": 1.0}, row | {"step": 2, "loss": 1.0}],
        "killed": [row, row | {"step": 1, "loss": 1.0}, row | {"step": 2, "loss": 1.0}],
        "restored": [row | {"step": 1}, row | {"step": 2, "loss": 2.0}],
    }
    monkeypatch.setattr(verify_stage, "launch", lambda folder, name, until: rows[name])
    words = ["verify", "resume", str(home / "tiny.yaml"), "--steps", "2"]
    assert app.main(words) == 1
    shown = capsys.readouterr()
    assert "differs" in shown.out and "proof" not in shown.out
    assert "error: step 2, the restored process: the loss is 1.0, here 2.0" in shown.err
    failed = verify_stage._failure("killed", 4, "noise\njaxgen: error: the disk is full\n")
    assert type(failed).__name__ == "CheckpointError" and str(failed) == "the disk is full"
    assert isinstance(verify_stage._failure("killed", 70, "boom"), RuntimeError)
    assert app.main([*words[:-1], "1"]) == 2
    assert app.main([*words, "--mesh", "dta:2"]) == 2
