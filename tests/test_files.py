"""Lines of a text end at line ends, and nowhere else."""

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen import files
from jaxgen.cli import inputs, measure
from jaxgen.models.classic import grammar

# Where str.splitlines cuts besides, and what str.split takes for white space.
ODD = "\r \v \f \x1c \x1d \x1e \x1f \x85 \u00a0 \u2028 \u2029 \u3000".split(" ")


@given(st.lists(st.text(st.sampled_from(["a", " ", *ODD[1:]]))), st.sampled_from(["\n", "\r\n"]))
def test_lines_come_back_as_they_were(wanted, end):
    assert files.lines("".join(line + end for line in wanted)) == wanted
    if wanted and wanted[-1]:
        assert files.lines(end.join(wanted)) == wanted


@pytest.mark.parametrize("mark", ODD)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_a_line_is_one_text_whatever_it_holds(tmp_path, monkeypatch, mark, end):
    wanted = ["first", f"one{mark}two", "last"]
    raw = b"\xef\xbb\xbf" + "".join(line + end for line in wanted).encode()
    (tmp_path / "x.txt").write_bytes(raw)
    assert inputs.texts((), str(tmp_path / "x.txt")) == wanted
    assert measure._lines(str(tmp_path / "x.txt")) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert inputs.texts((), "-") == wanted


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\u00a0"])
def test_objects_and_rules_a_line_hold_every_character(tmp_path, mark):
    row = {"question": f"who{mark}?", "context": f"a{mark}b"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    path = str(tmp_path / "x.jsonl")
    assert [*inputs.objects(path, ("question", "context"))] == [(f"{path}:1", row)]
    found = grammar.parse(f'S -> "a{mark}b" T\r\nT -> "c"\n')
    assert found.rules["S"][0][1][0].name == f"a{mark}b"
