"""Epochs, early stopping and the average of a whole run."""

import json

import numpy as np
import pytest

from jaxgen.errors import ConfigError
from jaxgen.run import training
from jaxgen.run.folder import existing_settings
from jaxgen.run.settings import build_settings

MODEL = {"context": 16, "layers": 1, "d_model": 16, "heads": 2, "positions": "rope"}


def given(folder, **train):
    (folder / "a.txt").write_text("a text of some words, again and again. " * 30)
    return {
        "model": MODEL,
        "tokenizer": {"kind": "bytes"},
        "data": {"files": [str(folder / "a.txt")], "split": "tail"},
        "train": {"batch": 4, "warmup": 1, "log_every": 1} | train,
    }


def test_a_run_of_epochs_ends_early_shows_its_average_and_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    # Losses that no step lowers: a learning rate of next to nothing, to be stopped at once.
    asked = given(tmp_path, epochs=1.5, ema=0.9, early_stopping=2, validate_every=1,
                  learning_rate=1e-30)  # fmt: skip
    training.train(build_settings(asked), run, cache=tmp_path / "cache")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = existing_settings(run)
    tokens = 1053  # of 1170, the tail withheld; in rows of 16, four a step
    assert kept.train.steps == int(np.ceil(1.5 * np.ceil(tokens / 16) / 4))
    assert max(row["step"] for row in rows) == 3
    text = capsys.readouterr().out
    assert f"train.epochs=1.5 are {kept.train.steps} steps" in text
    assert "ended at step 3" in text and "train.early_stopping=2" in text
    training.resume(run, ["train.early_stopping=null", "train.epochs=0.3",
                          "train.learning_rate=0.01"], cache=tmp_path / "cache")  # fmt: skip
    assert existing_settings(run).train.steps == 5
    valid = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
             if '"valid"' in line]  # fmt: skip
    assert valid[-1]["step"] == 5 and valid[-1]["loss"] < valid[0]["loss"]


@pytest.mark.parametrize(
    ("change", "part"),
    [({"epochs": 2.0, "steps": 7}, "exclude each other"),
     ({"epochs": 0.0}, "epochs=0.0 must be greater than 0"),
     ({"ema": 1.0}, "ema=1.0"),
     ({"early_stopping": 0}, "early_stopping=0 must be at least 1, or null"),
     ({"early_stopping": 2, "none": True}, "keep no text for them")],
)  # fmt: skip
def test_what_can_not_be_is_refused(tmp_path, change, part):
    with pytest.raises(ConfigError) as error:
        sections = given(tmp_path, **{k: v for k, v in change.items() if k != "none"})
        sections["data"] |= {"valid_fraction": 0.0} if "none" in change else {}
        training.train(build_settings(sections), tmp_path / "r", cache=tmp_path)
    assert part in str(error.value)
