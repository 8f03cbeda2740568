"""Metrics and samples at Weights & Biases: its library is told all, and never in the way."""

import json
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from jaxgen import settings
from jaxgen.errors import ConfigError
from jaxgen.run.settings import Settings, differences
from jaxgen.train import log, wandb_run
from jaxgen.train.log import Log
from jaxgen.train.settings import TrainSettings


class Library(ModuleType):
    """A `wandb` that keeps what it is told; faults: names of the calls that fail."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.begun, self.logged, self.finished, self.faults = [], [], 0, set()
        self.Html = lambda text: ("html", text)

    def fail(self, name):
        if name in self.faults:
            raise ConnectionError(f"{name}: network is unreachable")

    def init(self, **about):
        self.fail("init")
        self.begun.append(about)
        return SimpleNamespace(log=self.log, finish=self.finish, url="https://wandb.test/r/1")

    def log(self, values, *, step):
        self.fail("log")
        self.logged.append((step, values))

    def finish(self):
        self.fail("finish")
        self.finished += 1


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    return library


def write(folder, **about):
    with Log(folder, total_steps=9, display="plain", track=("wandb",), **about) as writer:
        writer.step(1, {"loss": 2.5, "skipped": 0.0})
        writer.validation(1, {"loss": 2.0})
        writer.text(1, "The", "a < b")
        writer.step(2, {"loss": 2.25, "skipped": 0.0})


def test_all_metrics_samples_and_settings_arrive_in_their_order(library, tmp_path, capsys):
    write(tmp_path / "my", config={"train": {"steps": 9}})
    (begun,) = library.begun
    assert begun["name"] == "my" and begun["config"] == {"train": {"steps": 9}}
    assert begun["dir"] == str(tmp_path / "my") and begun["settings"]["console"] == "off"
    assert library.logged == [
        (1, {"train/loss": 2.5, "train/skipped": 0.0}),
        (1, {"valid/loss": 2.0}),
        (1, {"samples/The": ("html", "<pre>a &lt; b</pre>")}),
        (2, {"train/loss": 2.25, "train/skipped": 0.0}),
    ]
    assert library.finished == 1
    assert capsys.readouterr().out.count("W&B shows the run at https://wandb.test/r/1") == 1
    assert not (tmp_path / "my/events").exists()


def test_a_resumed_run_goes_on_with_its_own_and_a_new_one_does_not(library, tmp_path):
    write(tmp_path)
    write(tmp_path, resume_step=1)
    write(tmp_path)
    first, resumed, anew = (one["id"] for one in library.begun)
    assert first == resumed != anew
    assert all(one["resume"] == "allow" for one in library.begun)


@pytest.mark.parametrize("fault", ["init", "log", "finish"])
def test_a_fault_is_said_once_and_training_goes_on(library, tmp_path, capsys, fault):
    library.faults.add(fault)
    write(tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("warning: wandb can't be written") == 1
    assert f"{fault}: network is unreachable" in shown and "training goes on" in shown
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 1, 2]


def test_a_network_that_hangs_holds_up_no_file(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log, "CLOSING_SECONDS", 0.2)
    answered = threading.Event()
    monkeypatch.setattr(library, "init", lambda **about: answered.wait(30))
    with Log(tmp_path, total_steps=9, display="plain", track=("wandb",)) as writer:
        writer.step(1, {"loss": 2.5})
        begun = time.monotonic()
        writer.settle()
        assert time.monotonic() - begun < log.SETTLING_SECONDS
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    answered.set()
    assert "wandb can't be written (no answer for" in capsys.readouterr().out


def test_without_the_library_a_run_that_wants_it_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(wandb_run, "find_spec", lambda name: None)
    wandb_run.check(("tensorboard",))
    with pytest.raises(
        ConfigError, match=r"needs the `wandb` package: pip install 'jaxgen\[wandb\]'"
    ):
        wandb_run.check(("wandb",))


def test_where_metrics_go_is_a_list_of_names_that_may_change_at_any_time(tmp_path):
    plain = Settings()
    both = settings.build(Settings, {"train": {"track": ["tensorboard", "wandb"]}})
    assert plain.train.track == ("tensorboard",) and both.train.track == ("tensorboard", "wandb")
    assert differences(plain, both, tmp_path, onward=False) == []
    assert settings.build(Settings, {"train": {"track": []}}).train.track == ()
    with pytest.raises(ConfigError, match=r"track.*'neptune'"):
        TrainSettings(track=("neptune",))
