"""Private runs: shown, stopped at the budget, restored bit for bit, and refused by name."""

import json
import re
import shutil
import sys
import threading
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen import data, tokens
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.mesh.group import Group
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.run import announce, inputs, shapes
from jaxgen.run.folder import TOKENIZER, existing_settings
from jaxgen.run.job import Run
from jaxgen.run.preparing import with_steps_and_noise
from jaxgen.run.settings import build_settings, resolve
from jaxgen.run.step import step_of
from jaxgen.run.training import resume, train
from jaxgen.store import directory
from jaxgen.train.log import Log

# Little is spent because a small epsilon is accounted for in a tenth of the time.
PRIVACY = {"epsilon": 0.5, "delta": 1e-3, "unit": "row", "expected": 3.0}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "text.txt"
    words = np.random.default_rng(0).integers(0, 40, 900)
    path.write_text(" ".join(f"w{word}" for word in words))
    return path


def settings_of(text, *, privacy=None, **more):
    sections = {
        "model": {"context": 16, "layers": 1, "d_model": 8, "heads": 1},
        "tokenizer": {"kind": "bytes"},
        "data": {"files": [str(text)], "split": "tail"},
        "train": {"steps": 4, "batch": 8, "log_every": 1, "validate_every": 4, "track": []},
        "checkpoint": {"every": 2, "keep_last": 9},
    }
    for name, values in more.items():
        sections[name] = sections.get(name, {}) | values
    sections["train"] = sections["train"] | {"privacy": PRIVACY if privacy is None else privacy}
    return build_settings(sections)


# In the place of tensorboardX, which imports torch where it is installed: it tells where it is.
TELLS = """import threading
from pathlib import Path
Path(__file__).with_name("thread").write_text(threading.current_thread().name)
"""


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    package = folder.parent / "tensorboardX"
    package.mkdir()
    (package / "__init__.py").write_text(TELLS)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorboardX"]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(folder.parent)
        settings = settings_of(text, train={"track": ["tensorboard"]})
        train(settings, folder, cache=folder.parent / "cache")
        sys.modules.pop("tensorboardX")
    return folder


def test_what_scipy_asks_for_names_is_not_imported_in_the_log_s_thread(run):
    """SciPy, in this one, asks a torch that is half imported for names that it lacks yet."""
    name = (run.parent / "tensorboardX" / "thread").read_text()
    assert name == threading.current_thread().name


def lines(run, kind="train"):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_a_run_shows_its_epsilon_and_keeps_to_the_budget(run):
    spent = [row["epsilon"] for row in lines(run)]
    assert len(spent) == 4 and spent == sorted(spent) and 0.49 < spent[-1] <= 0.5
    assert "epsilon" in (run / "log.txt").read_text()
    card = json.loads((run / "privacy.json").read_text())
    assert card["epsilon"] == pytest.approx(spent[-1], abs=1e-5)
    assert card["delta"] == 1e-3 and card["steps"] == 4 and card["rows"] == 8
    assert card["unit"].startswith("row") and "Poisson" in card["sampling"]
    assert card["probability"] * card["units"] == pytest.approx(3.0)
    assert "done: " in (said := (run / "log.txt").read_text())
    assert "the best validation is that of step 4 (--step best)" in said


def test_the_end_of_a_run_waits_for_no_other_process(run, monkeypatch):
    """They have left already: the first process alone draws, writes the card and says good bye."""
    settings, tokenizer = existing_settings(run), tokens.load(run / TOKENIZER)
    corpus = inputs.prepare(settings, tokenizer, run.parent / "cache", folder=run)
    monkeypatch.setattr(Group, "sync", lambda *_, **__: pytest.fail("waits for the others"))
    with Log(run, total_steps=4, resume_step=4, display="off", track=()) as log:
        announce.conclude(Run(settings, run, tokenizer, corpus), log, "of a reason")
    assert "ended at step 4: of a reason" in (run / "log.txt").read_text()


def test_what_is_restored_makes_the_noise_that_was_lost(run, text, tmp_path):
    """A run of the same secret, cut after a checkpoint, ends in the same bytes."""
    other = tmp_path / "run"
    other.mkdir()
    for name in ("config.yaml", "tokenizer", "env.json", "checkpoints", "metrics.jsonl"):
        source = run / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, other / name)
    resume(other, ["train.track=[]"], cache=run.parent / "cache", step=2, force=True)
    tables = []
    for folder in (run, other):
        manifest = json.loads((folder / "checkpoints" / "00000004" / "manifest.json").read_text())
        tables.append(manifest["arrays"])
        assert manifest["extra"]["privacy"]["steps"] == 4
    assert tables[0] == tables[1] and tables[0]


def test_a_checkpoint_of_other_privacy_than_the_config_says_is_refused(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("    clip: 1.0", "    clip: 9.0"))
    with pytest.raises(CheckpointError, match="clip"):
        resume(other, [], cache=run.parent / "cache", step=2, force=True)


def test_more_steps_than_the_budget_has_end_at_once_and_other_privacy_is_refused(run, text):
    cache = run.parent / "cache"
    resume(run, ["train.steps=8", "train.track=[]"], cache=cache)
    assert directory.list_steps(run / "checkpoints")[-1] == 4
    assert "the budget of epsilon 0.5 is spent" in (run / "log.txt").read_text()
    for change in ("clip=2.0", "delta=2e-3", "seed=3", "unit=document"):
        with pytest.raises(ConfigError, match="another config"):
            resume(run, [f"train.privacy.{change}"], cache=cache)


WRONG = {
    "epsilon=0": ({"epsilon": 0, "delta": 1e-3}, {}, "epsilon=0"),
    "both": ({"epsilon": 8, "noise_multiplier": 1.0, "delta": 1e-3}, {}, "exclude each other"),
    "no delta": ({"epsilon": 8}, {}, "delta=null"),
    "delta": ({"epsilon": 8, "delta": 1.5}, {}, "delta=1.5"),
    "clip": ({"epsilon": 8, "delta": 1e-3, "clip": 0.0}, {}, "clip=0.0"),
    "quantile": ({"epsilon": 8, "delta": 1e-3, "quantile": 1.0}, {}, "quantile=1.0"),
    "off": ({"clip": 2.0}, {}, "has no effect"),
    "layers": (
        {"epsilon": 8, "delta": 1e-3, "clipping": "per_layer", "quantile": 0.5},
        {},
        "quant",
    ),
    "unit": (
        {"epsilon": 8, "delta": 1e-3, "unit": "file"},
        {"objective": {"name": "classes"}, "model": {"head": "classes", "classes": 2}},
        "unit=file",
    ),
    "masked": (
        {"epsilon": 8, "delta": 1e-3},
        {"objective": {"name": "masked"}, "model": {"topology": "encoder"}},
        "objective.name=masked",
    ),
    "experts": ({"epsilon": 8, "delta": 1e-3}, {"model": {"experts": {"number": 2}}}, "experts"),
    "user": ({"epsilon": 8, "delta": 1e-3, "unit": "user"}, {}, "needs data.user"),
    "form": ({"epsilon": 8, "delta": 1e-3}, {"mesh": {"form": "shard_map"}}, "mesh.form"),
    "train.clip": ({"epsilon": 8, "delta": 1e-3}, {"train": {"clip": 0.3}}, "train.clip=0.3"),
    "train.spike": ({"epsilon": 8, "delta": 1e-3}, {"train": {"spike": 9.0}}, "train.spike=9.0"),
    "early": ({"epsilon": 8, "delta": 1e-3}, {"train": {"early_stopping": 3}}, "early_stopping"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_private_or_not_consistent_is_refused_by_name(name, text):
    privacy, more, words = WRONG[name]
    with pytest.raises(ConfigError, match=words) as error:
        settings_of(text, privacy=privacy, **more)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        (PRIVACY | {"delta": 0.1}, "below 1 /"),
        (PRIVACY | {"expected": 9.0}, "expected=9"),
    ],
)
def test_what_does_not_fit_the_number_of_units_is_refused_before_the_folder_is_begun(
    privacy, words, text, tmp_path
):
    with pytest.raises(ConfigError, match=words):
        train(settings_of(text, privacy=privacy), tmp_path / "run", cache=tmp_path / "cache")
    assert not (tmp_path / "run" / "config.yaml").exists()


OPTIONS = {
    "noise_multiplier": {"noise_multiplier": 1.1},
    "clip": {"clip": 2.0},
    "clipping": {"clipping": "per_layer"},
    "quantile": {"quantile": 0.5},
    "method": {"method": "vmap"},
    "expected": {"expected": 2.0},
    "seed": {"seed": 6},
}
# These are of the noise that epsilon is solved to, or of what is drawn from.
SOLVED = {
    "epsilon": {"epsilon": 0.5},
    "delta": {"delta": 2e-3},
    "accountant": {"accountant": "rdp"},
    "solved_noise": {"solved_noise": 3.0},
    "unit": {"unit": "file", "solved_noise": 3.0},
}
OPEN = {"noise_multiplier": 2.0, "delta": 1e-3, "expected": 0.3, "unit": "document", "seed": 5}
SOLVES = OPEN | {"noise_multiplier": None, "epsilon": 1.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The settings, tokenizer and corpus of eight files of ten documents, each of one letter."""
    home = tmp_path_factory.mktemp("letters")
    for letter in "abcdefgh":
        rows = [json.dumps({"text": letter * 20})] * 10
        (home / f"{letter}.jsonl").write_text("\n".join(rows))
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    files = {"files": [str(home / "*.jsonl")], "split": "tail", "valid_fraction": 0}
    return (
        files,
        tokenizer,
        data.prepare(
            data.DataSettings(files=(files["files"][0],), split="tail", valid_fraction=0.0),
            *(tokenizer, home / "cache"),
        ),
    )


def prepared(files, privacy):
    """Return the run of these settings, with what is open filled in."""
    own, tokenizer, corpus = files
    settings = resolve(settings_of("", data=own, privacy=privacy), tokenizer)
    run = Run(settings, Path(), tokenizer, corpus)
    return Run(with_steps_and_noise(run), Path(), tokenizer, corpus)


def program(files, change):
    """Return the step of these options in words."""
    run = prepared(files, OPEN | change)
    step = step_of(run.settings, run.optimizer)
    words = str(jax.make_jaxpr(step)(run.shapes, shapes.batch(run.settings)))
    return re.sub("0x[0-9a-f]+", "", words)


def test_each_option_of_privacy_changes_the_step_or_what_it_draws_from(files):
    every = {field.name for field in fields(PrivacySettings)}
    assert OPTIONS.keys() | SOLVED.keys() == every and not OPTIONS.keys() & SOLVED.keys()
    plain = program(files, {})
    assert program(files, {}) == plain
    for name, change in OPTIONS.items():
        assert program(files, change) != plain, name
    found = {name: prepared(files, SOLVES | SOLVED[name]).budget.mechanism for name in SOLVED}
    plain = prepared(files, SOLVES).budget.mechanism
    for name in ("epsilon", "accountant"):  # rdp needs more noise for the same epsilon
        assert found[name].noise > plain.noise, name
    assert found["delta"].noise < plain.noise
    assert found["solved_noise"].noise == 3.0
    assert found["unit"].population == 8 < plain.population
    more = prepared(files, OPEN | {"expected": 2.0}).budget.mechanism
    assert more.rate == 2.0 / more.population
