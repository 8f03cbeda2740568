"""`jaxgen.train` does what the command does, where there is no command line."""

import io
import sys
from pathlib import Path

import pytest

import jaxgen
from jaxgen import run
from jaxgen.buckets import BucketPath
from jaxgen.errors import ConfigError
from jaxgen.train import display
from jaxgen.train.display import Reading

FAST = {"steps": 2, "batch": 4}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    Path("my.txt").write_text("the cat sat on the mat, said the old man. " * 60)


def test_text_is_trained_on_opened_and_goes_on(capsys):
    folder = jaxgen.train(
        "my.txt", "sample.max_new_tokens=2", train=FAST, model={"layers": 1}, out="here"
    )
    assert folder == Path("here") and "chosen for" in capsys.readouterr().out
    assert len(jaxgen.open(folder).generate("the", max_new_tokens=3, seed=0)) >= 0
    again = jaxgen.train(["here", "my.txt"], train={"steps": 3})
    assert again == folder and "resuming at step 2 of 3" in capsys.readouterr().out


def test_a_config_is_a_mapping_a_file_or_a_mistake(monkeypatch):
    calls = []
    monkeypatch.setitem(vars(run), "train", lambda *words, **more: calls.append((words, more)))
    mapping = {"data": {"files": "my.txt"}, "train": FAST}
    assert jaxgen.train(mapping, out="x", train={"steps": 5}, force=True) == Path("x")
    assert isinstance(jaxgen.train(mapping, out="gs://bkt/x"), BucketPath)
    (settings, folder), more = calls[0]
    assert (settings.train.steps, settings.train.batch, folder) == (5, 4, Path("x"))
    assert settings.data.files == ("my.txt",) and more["force"]
    assert jaxgen.train("debug", train={"warmup": 0}) == Path("runs/debug")
    assert calls[2][0][0].train.warmup == 0
    with pytest.raises(ConfigError, match="train: what=3 is an integer"):
        jaxgen.train(3)
    with pytest.raises(ConfigError, match=r"train: minute= .*did you mean 'minutes'\?"):
        jaxgen.train("my.txt", minute=1)
    with pytest.raises(ConfigError, match=r"train: model_= .*did you mean 'model'\?"):
        jaxgen.train("my.txt", model_={})
    with pytest.raises(ConfigError, match=r"train: minutes=0.* must be greater than 0"):
        jaxgen.train("my.txt", minutes=0)
    with pytest.raises(ConfigError, match="give out="):
        jaxgen.train(mapping)
    with pytest.raises(ConfigError, match=r"did you mean 'train\.steps'"):
        jaxgen.train(mapping, out="x", train={"stpes": 5})


def test_an_old_name_of_the_hub_is_answered_with_its_owner():
    with pytest.raises(ConfigError, match=r"gpt2: no such run, .*is openai-community/gpt2"):
        jaxgen.open("gpt2")
    with pytest.raises(ConfigError, match="is init_from=openai-community/gpt2"):
        jaxgen.train("my.txt", init_from="gpt2")


def test_an_interrupt_that_has_saved_returns(monkeypatch):
    def stop(*_, **__):
        raise SystemExit(75)

    monkeypatch.setitem(vars(run), "train", stop)
    assert jaxgen.train({"data": {"files": "my.txt"}}, out="x") == Path("x")


def test_the_package_is_still_one():
    from jaxgen.train import schedule, state

    assert callable(jaxgen.train) and jaxgen.train is sys.modules["jaxgen.train"]
    assert jaxgen.train.state is state and callable(schedule.make)


def test_a_notebook_renews_its_line_below_what_is_said():
    class OutStream(io.StringIO):
        """As IPython's own, which is no terminal."""

    OutStream.__module__ = "ipykernel.iostream"
    stream = OutStream()
    shown = display.make("auto", 4, 0, stream)
    shown.wait("compiling", 1.0)
    for step in (1, 2):
        shown.update(Reading(step=step, total=4, loss=1.0))
    shown.say("saved")
    shown.update(Reading(step=4, total=4, loss=0.5))
    shown.close()
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3 and lines[-1] == ""
    assert lines[0].count("\r") == 4 and lines[0].rpartition("\r")[2].rstrip() == "saved"
    assert len(lines[0].rpartition("\r")[2]) >= len("step 2/4  loss 1.0000")  # nothing is left over
    assert "####" in lines[1] and "step 4/4  loss 0.5000" in lines[1]
