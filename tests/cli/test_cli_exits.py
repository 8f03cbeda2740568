"""How errors leave the command: the code, one line, and never a traceback on the terminal."""

import errno

import pytest

from jaxgen import errors, run
from jaxgen.cli import exits

TINY = "model: {context: 16, layers: 1, d_model: 8, heads: 2}\n"


@pytest.fixture
def fails(jaxgen, monkeypatch, tmp_path):
    """Let `jaxgen train` end in an error: fails(error) -> .code, .out, .err."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(exits.tempfile, "gettempdir", lambda: str(tmp_path))

    def call(error):
        def raises(*_, **__):
            raise error

        monkeypatch.setitem(vars(run), "train", raises)
        shown = jaxgen("train", "tiny.yaml", "--out", str(tmp_path / "out"))
        first, shown.err = shown.err.split("\n", 1)  # said before anything can go wrong
        assert first == f"training in {tmp_path / 'out'}"
        return shown

    return call


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("heads=3 does not divide d_model=8"), 2),
        (errors.BusyError("runs/a is held by process 7"), 3),
        (errors.CheckpointError("step 7 is damaged"), 4),
        (errors.NonFiniteError("step 9: the loss is nan"), 6),
        (errors.DataError("a.jsonl:3: no field 'text'"), 7),
    ],
)
def test_an_error_of_the_user_is_one_line_with_its_code(fails, tmp_path, error, code):
    result = fails(error)
    assert (result.code, result.err) == (code, f"jaxgen: error: {error}\n")
    assert not list(tmp_path.glob("crash-*"))


def test_line_breaks_and_escapes_in_a_message_stay_on_one_line(fails):
    result = fails(errors.DataError("bad\nline \x1b[31m here"))
    assert result.err == "jaxgen: error: bad line \\x1b[31m here\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ELOOP, errno.EIO])
def test_what_the_system_refuses_is_exit_3_with_the_path(fails, number):
    result = fails(OSError(number, "refused", "/data/run"))
    assert result.code == 3
    assert result.err.startswith("jaxgen: error: /data/run ") and result.err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 GiB."),
    ],
)
def test_too_little_memory_is_exit_3_with_a_suggestion(fails, error):
    result = fails(error)
    assert result.code == 3 and "lower train.batch" in result.err
    assert result.err.count("\n") == 1


def test_what_the_device_wanted_is_said(fails):
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7516192768 bytes."
    assert "allocate 7516192768 bytes" in fails(RuntimeError(message)).err


def test_an_absent_device_is_exit_3(fails):
    result = fails(RuntimeError("Unable to initialize backend 'tpu': not found"))
    assert result.code == 3 and "'tpu'" in result.err


def test_ctrl_c_is_130(fails):
    result = fails(KeyboardInterrupt())
    assert (result.code, result.err) == (130, "jaxgen: interrupted\n")


class Panic(BaseException):
    """As the Rust extensions raise it."""


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), Panic("index")])
def test_a_bug_is_70_with_its_traceback_in_a_file(fails, tmp_path, error):
    result = fails(error)
    assert result.code == 70 and result.err.count("\n") == 1
    (crash,) = tmp_path.glob("crash-*.txt")
    assert str(crash) in result.err and type(error).__name__ in result.err
    assert "Traceback" in crash.read_text() and type(error).__name__ in crash.read_text()
    assert "Traceback" not in result.err


def test_the_traceback_goes_into_the_run_folder_if_there_is_one(fails, tmp_path):
    (tmp_path / "out").mkdir()
    fails(ZeroDivisionError())
    assert list((tmp_path / "out").glob("crash-*.txt"))


def test_no_traceback_goes_into_the_folder_of_a_published_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for folder, kept in ((tmp_path, None), (tmp_path / "run", tmp_path / "run")):
        with pytest.raises(ZeroDivisionError) as caught, exits.in_folder(folder):
            raise ZeroDivisionError
        assert getattr(caught.value, "run_folder", None) == kept
