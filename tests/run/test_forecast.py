"""A run that this machine can't hold is refused before it is compiled, with one that it can."""

import re

import pytest

from jaxgen import host
from jaxgen.cli import paths
from jaxgen.errors import ConfigError
from jaxgen.run import forecast, inputs
from jaxgen.run.settings import build_settings, read_settings

MODEL = {"vocab_size": 512, "context": 256, "layers": 4, "d_model": 64, "heads": 4}
WIDE = {"model": MODEL, "train": {"batch": 32, "steps": 10}}


@pytest.mark.parametrize(
    ("memory", "helps"), [(2**28, "accumulate"), (2**24, "accumulate"), (2**23, "context")]
)
def test_a_step_too_large_is_refused_and_the_advice_works_when_followed(monkeypatch, memory, helps):
    settings = build_settings(WIDE)
    forecast.check(settings)
    monkeypatch.setattr(forecast, "device_memory", lambda: float(memory))
    with pytest.raises(ConfigError, match=r"nearest that fits: [^\n]*\)$") as caught:
        forecast.check(settings)
    advice = re.search(r"nearest that fits: (.*) \(", str(caught.value)).group(1).split()
    assert any(f".{helps}=" in word for word in advice), advice
    mapping = {**WIDE, "train": dict(WIDE["train"]), "model": dict(MODEL)}
    for word in advice:
        section, name, value = re.fullmatch(r"(\w+)\.(\w+)=(\w+)", word).groups()
        mapping[section][name] = int(value) if value.isdigit() else value
    forecast.check(build_settings(mapping))


def test_a_model_too_large_for_any_batch_is_told_so(monkeypatch):
    monkeypatch.setattr(forecast, "device_memory", lambda: 1e5)
    with pytest.raises(ConfigError, match=r"take fewer model.layers or a smaller model.d_model"):
        forecast.check(build_settings(WIDE))


def test_a_run_that_does_not_fit_leaves_nothing_behind(here, config, monkeypatch, tmp_path):
    monkeypatch.setattr(forecast, "device_memory", lambda: 1e4)
    code, said = here("train", config, "--out", tmp_path / "run")
    assert code == 2 and "a training step needs" in said, said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["debug", "bert_mlm", "t5_span", "classify", "translate"])
def test_every_kind_of_objective_has_a_forecast(name):
    forecast.check(inputs.sized(read_settings(paths.config(name), ["model.vocab_size=500"])))


def test_the_memory_of_a_container_counts(monkeypatch, tmp_path):
    whole = host.memory()
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(host, "LIMITS", (str(tmp_path / "none"), str(tmp_path / "absent")))
    assert host.memory() >= whole
    monkeypatch.setattr(host, "LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert host.memory() == 1e6
