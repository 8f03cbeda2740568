"""`jaxgen transcribe`: sound files in, text and subtitles out; mistakes are one line."""

import json

import pytest
import speech_model

from jaxgen.cli import app
from jaxgen.data.media import write_wav

ONCE = ["--temperature", "0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("transcribe")
    speech_model.write(home / "model")
    for name, seconds in (("a", 2.7), ("b", 0.6)):
        write_wav(home / f"{name}.wav", speech_model.hum(seconds), 16000)
    (home / "empty.wav").write_bytes(b"")
    return home


@pytest.fixture(autouse=True)
def there(home, monkeypatch):
    monkeypatch.chdir(home)


def run(*words):
    return app.main(["transcribe", "model", *words])


def test_text_is_a_line_a_segment_and_each_format_says_the_same(capsys):
    assert run("a.wav", *ONCE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run("a.wav", *ONCE, "--format", "json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["file"] == "a.wav" and about["duration"] == 2.7
    assert [one["text"].strip() for one in about["segments"]] == lines
    assert run("a.wav", *ONCE, "--output", "a.vtt") == 0
    with open("a.vtt", encoding="utf-8") as file:
        head, *blocks = file.read().rstrip("\n").split("\n\n")
    assert head == "WEBVTT" and len(blocks) == len(lines)
    assert blocks[0].split("\n")[0].startswith("00:00:00.")


def test_several_sounds_are_written_in_their_order_or_to_files(home, capsys):
    assert run("a.wav", "b.wav", *ONCE, "--batch", "2") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("a.wav:\n") and "\nb.wav:\n" in shown
    assert run("a.wav", "b.wav", *ONCE, "--format", "srt", "--output", "subs") == 0
    assert sorted(path.name for path in (home / "subs").iterdir()) == ["a.srt", "b.srt"]
    assert (home / "subs" / "b.srt").read_text(encoding="utf-8").startswith("1\n00:00:00,")


WRONG = {
    "none.wav is no file": (["none.wav"], 2),
    "empty.wav is empty": (["empty.wav"], 7),
    "--format srt of 2 sounds": (["a.wav", "b.wav", "--format", "srt"], 2),
    "--output a.doc ends with none of": (["a.wav", "--output", "a.doc"], 2),
    "--output empty.wav is a file": (["a.wav", "b.wav", "--output", "empty.wav"], 2),
    "would be written to subs/a.txt": (["a.wav", "./a.wav", "--output", "subs"], 2),
    "none of the model's 2": (["a.wav", "--language", "fr"], 2),
    "batch": (["a.wav", "--batch", "0"], 2),
    "temperatures": (["a.wav", "--temperature", "-1"], 2),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_mistake_is_one_line(reason, capsys):
    words, code = WRONG[reason]
    assert run(*words) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert reason in said[-1] or reason in said[0]
