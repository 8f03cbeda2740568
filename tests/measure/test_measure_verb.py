"""`jaxgen measure`: files of lines in, figures out, and files that can't be measured."""

import json
from pathlib import Path

import pytest
import sacrebleu

from jaxgen.cli import app

MADE = ["the cat sat on the mat", "", "a dog barks at night loudly"]
TRUE = ["the cat sat on a mat", "something", "a dog barked at night"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("made", MADE), ("true", TRUE), ("one", MADE[:1]), ("empty", [])):
        Path(f"{name}.txt").write_text("".join(line + "\n" for line in lines))
    Path("spaces.txt").write_text("a\n   \nb\n")
    Path("blank.txt").write_text("\n  \n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")


def test_figures_are_printed_and_written_with_their_intervals(capsys):
    assert app.main(["measure", "made.txt", "--references", "true.txt", "--output", "x.json"]) == 0
    shown = capsys.readouterr().out
    figures = json.loads(Path("x.json").read_text())["figures"]
    assert all(name in shown for name in figures) and "nan" not in shown.lower()
    assert figures["BLEU"]["value"] == sacrebleu.corpus_bleu(MADE, [TRUE]).score
    assert figures["METEOR"]["low"] <= figures["METEOR"]["value"] <= figures["METEOR"]["high"]


def test_one_text_has_no_self_bleu_and_says_so(capsys):
    assert app.main(["measure", "one.txt", "--output", "x.json"]) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("self-BLEU"))
    assert row.split() == ["self-BLEU", "-"]
    assert json.loads(Path("x.json").read_text())["figures"]["self-BLEU"]["value"] is None


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["empty.txt"], 7, "empty.txt holds no text"),
        (["blank.txt"], 7, "blank.txt holds no text"),
        (["made.txt", "--references", "one.txt"], 7, "3 hypotheses but 1 references"),
        (["made.txt", "--references", "spaces.txt"], 7, "reference 2 is empty or only spaces"),
        (["latin.txt"], 7, "latin.txt is not UTF-8: byte 0xe9 at offset 3"),
        (["none.txt"], 2, "none.txt: No such file"),
        (["made.txt", "--judge", "x"], 2, "--judge x compares texts with --references"),
        (
            ["made.txt", "--references", "true.txt", "--judge", "x"],
            2,
            "x: no such run",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(capsys, words, code, part):
    assert app.main(["measure", *words, "--output", "x.json"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and part in lines[0]
    assert not Path("x.json").exists()
