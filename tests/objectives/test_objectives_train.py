"""Each objective trains from its config, and every config in configs/ is one that can be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import files, settings_yaml
from jaxgen.errors import ConfigError
from jaxgen.run import evaluation, training
from jaxgen.run.settings import build_settings

SMALL = {"context": 32, "layers": 1, "d_model": 16, "d_ff": 32, "heads": 2}
WORDS = "return the value of a list if it is there. else raise an error! none is given".split()


def files_of(folder, form):
    """Write a few records of a form; return the data section that reads them."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(80)]
    records = {
        "text": [{"text": text} for text in texts],
        "pairs": [{"a": text, "b": text.split()[0]} for text in texts],
        "classes": [{"text": t, "label": "short" if len(t) < 60 else "long"} for t in texts],
    }[form]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    sides = {"pairs": {"sides": ["a", "b"]}, "classes": {"sides": ["text", "label"]}}
    return {"files": [str(path)], "valid_fraction": 0.2} | sides.get(form, {})


# What a run shows of each kind of model: masks filled in, classes, sources rewritten.
SAMPLES = {
    "bert_mlm": {"prompts": ["return <mask> value", "<mask> of a list"]},
    "classify": {"prompts": ["return the value", "a list"]},
    "summarize_docstrings": {"examples": 2, "max_new_tokens": 4},
}
SHOWN = {"bert_mlm": "return <mask> value -> ", "classify": "long 0."}


@pytest.mark.parametrize(
    "name",
    ["bert_mlm", "t5_span", "bart_denoise", "summarize_docstrings", "classify"],
)
def test_a_config_trains_and_goes_on_where_it_was(tmp_path, name):
    given = dict(settings_yaml.read_yaml(files.config_folder() / f"{name}.yaml"))
    form = {"summarize_docstrings": "pairs", "classify": "classes"}
    given |= {"data": files_of(tmp_path, form.get(name, "text")), "tokenizer": {"kind": "bytes"}}
    given["model"] = dict(given["model"]) | SMALL
    if name == "summarize_docstrings":
        given["objective"] = {"name": "pairs", "target": 16}
    given["train"] = dict(given["train"]) | {
        "steps": 3, "batch": 4, "warmup": 1, "log_every": 1, "validate_batches": 1,
        "validate_every": 3,
    }  # fmt: skip
    given["checkpoint"] = {"every": 3}
    given["sample"] = SAMPLES.get(name, {})
    settings = build_settings(given)
    training.train(settings, tmp_path / "run", cache=tmp_path / "cache")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[2] < losses[0] and np.isfinite(losses).all()
    valid = next(row for row in rows if row["kind"] == "valid")
    assert ("accuracy" in valid) == (name == "classify") and np.isfinite(valid["loss"])
    shown = tmp_path / "run/samples/3.txt"
    assert shown.exists() == (name in SAMPLES)
    if name in SAMPLES:
        text = shown.read_text()
        assert text.count("===") == text.count(" -> ") == 2 and SHOWN.get(name, "") in text
        assert all(part.split("\n===")[0].strip() for part in text.split(" -> ")[1:]), text
    measured = dict(evaluation.evaluate(tmp_path / "run", cache=tmp_path / "cache"))
    assert ("accuracy" in measured) == (name == "classify") and "nats per" in measured["loss"]
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    training.train(settings, tmp_path / "run", cache=tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == kept


@pytest.mark.parametrize(
    "path", sorted(files.config_folder().glob("*.yaml")), ids=lambda p: Path(p).stem
)
def test_every_config_can_be_read(path, tmp_path):
    given = dict(settings_yaml.read_yaml(path))
    if "init_from" in given:  # the folder is the user's; tests/tasks trains with one
        folder = tmp_path / "model"
        form = given.get("objective", {}).get("name")
        topology = "encoder_decoder" if form == "pairs" else "decoder"
        config = jaxgen.ModelConfig(vocab_size=9, topology=topology, **SMALL)
        jaxgen.save(folder, config, random_params(config))
        given["init_from"] = str(folder)
    build_settings(given)


@pytest.mark.parametrize(
    ("change", "part"),
    [({"objective": {"name": "masked"}}, "needs model.topology=encoder, not decoder"),
     ({"objective": {"name": "causal", "rate": 0.1}}, "rate=0.1 has no effect with name=causal"),
     ({"objective": {"name": "spans", "rate": 1.0}}, "rate=1.0"),
     ({"objective": {"name": "classes", "labels": ["a"]}}, "labels=['a']"),
     ({"sample": {"examples": -1}}, "examples=-1"),
     ({"model": {"prompt": "both"}}, "model.prompt=both needs objective.name=prefix"),
     ({"model": {"topology": "encoder", "head": "mlm"}}, "objective.name=causal needs")],
)  # fmt: skip
def test_an_objective_that_can_not_work_is_refused(change, part):
    with pytest.raises(ConfigError) as error:
        build_settings(change)
    assert part in str(error.value)
