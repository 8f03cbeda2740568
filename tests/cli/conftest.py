"""A command line called in-process, in an empty folder, with what lies below it faked."""

import io
import sys
from types import SimpleNamespace

import pytest

from jaxgen import run
from jaxgen.cli import app, start


class Input(io.TextIOWrapper):
    """A standard input that is, or is not, a terminal."""

    def __init__(self, raw=b"", terminal=False):
        super().__init__(io.BytesIO(raw), encoding="utf-8")
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def calls():
    """What reached the fakes, in order."""
    return []


@pytest.fixture
def jaxgen(tmp_path, monkeypatch, capsys, calls):
    """Call the command: jaxgen("train", "x.yaml") -> .code, .out, .err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", Input())
    monkeypatch.setattr(start, "prepare_jax", lambda cache: calls.append(("prepare_jax", cache)))

    def fake(name, answer=None):
        def called(*arguments, **options):
            calls.append((name, arguments, options))
            return answer

        # Not setattr: it would look the real one up, and so import all of JAX.
        monkeypatch.setitem(vars(run), name, called)

    for name in ("train", "resume"):
        fake(name)
    fake("tokenize", [("tokenizer", "bytes, 256 ids"), ("digest", "abc")])
    fake("evaluate", [("loss", "1.5 nats per token"), ("bits per byte", "2.1")])

    def call(*words, stdin=None, typed=None):
        """stdin: bytes that come through a pipe; typed: bytes that come from a terminal."""
        if stdin is not None or typed is not None:
            monkeypatch.setattr(sys, "stdin", Input(stdin or typed or b"", typed is not None))
        code = app.main(list(words))
        shown = capsys.readouterr()
        return SimpleNamespace(code=code, out=shown.out, err=shown.err)

    return call
