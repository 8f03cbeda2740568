"""Files and folders that appear whole or not at all (jaxgen/files.py)."""

import errno
import hashlib
import os

import pytest

from jaxgen import files
from jaxgen.errors import BusyError, CheckpointError


def test_a_file_is_replaced_whole_and_newlines_stay(tmp_path):
    files.write(tmp_path / "a", "old")
    files.write(tmp_path / "a", "é\r\n\n")
    assert (tmp_path / "a").read_bytes() == "é\r\n\n".encode()
    assert files.digest(tmp_path / "a") == hashlib.sha256("é\r\n\n".encode()).hexdigest()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("code", (errno.ENOSPC, errno.EROFS, errno.EIO))
def test_a_refused_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, code):
    files.write(tmp_path / "a", "old")

    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BusyError) as caught:
        files.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]
    assert str(tmp_path / "a") in str(caught.value) and "\n" not in str(caught.value)


def test_json_that_no_reader_takes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fill(fail):
        with files.new_folder(tmp_path / "deep" / "folder") as draft:
            assert draft.parent == tmp_path / "deep" and draft.name.startswith(".tmp-")
            (draft / "inner").mkdir()
            (draft / "inner" / "file").write_text("x")
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(True)
    assert not os.listdir(tmp_path / "deep")
    fill(False)
    assert os.listdir(tmp_path / "deep") == ["folder"]
    assert (tmp_path / "deep" / "folder" / "inner" / "file").read_text() == "x"
    with pytest.raises(BusyError, match="exists already"):
        fill(False)
    assert os.listdir(tmp_path / "deep") == ["folder"]


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    files.write(tmp_path / "file", "x")
    with pytest.raises(BusyError, match="not a folder"):
        files.write(tmp_path / "file" / "below", "x")
    with pytest.raises(BusyError, match="not a folder"), files.new_folder(tmp_path / "file" / "b"):
        pass
    with pytest.raises(BusyError, match="vanished"):
        files.write(tmp_path / "none" / "below", "x")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1288490189, "1.2 GiB"), (2**51, "2048.0 TiB")]
)
def test_sizes_are_said_in_words(size, text):
    assert files.human(size) == text


def test_artifacts_are_checked_on_sight(tmp_path):
    path = tmp_path / "weights"
    files.write(path, b"x" * 100)
    assert files.read_artifact(path, "model file", 100) == b"x" * 100
    with pytest.raises(CheckpointError, match="has 100 B, more than the 99 B"):
        files.read_artifact(path, "model file", 99)
    with pytest.raises(CheckpointError, match="is a folder"):
        files.read_artifact(tmp_path, "model file", 99)
    files.write(path, "version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="run git lfs pull"):
        files.read_artifact(path, "model file", 99)
