"""A file is read once, and again as soon as anything says that it may be another."""

import os
import time

import pytest

from jaxgen import files
from jaxgen.data.digests import FRESH, NAME, DigestCache


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some text")
    return path


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """The clock of a start that comes long after the files were written."""
    now = time.time
    monkeypatch.setattr("jaxgen.data.digests.time.time", lambda: now() + 2 * FRESH)


def taken(folder, path):
    """Return (the digest, how often the file was read) of a new process."""
    reads = []
    cache = DigestCache(folder)
    digest = cache.of(path, lambda one: reads.append(one) or files.digest(one))
    cache.save()
    return digest, len(reads)


def test_the_second_start_reads_nothing(tmp_path, text):
    assert taken(tmp_path, text) == (files.digest(text), 1)
    assert taken(tmp_path, text) == (files.digest(text), 0)


def in_place(path):
    about = path.stat()
    path.write_text("same size")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def replaced(path):
    path.with_name("other").write_text("same size")
    path.with_name("other").replace(path)


@pytest.mark.parametrize(
    "change", [in_place, replaced, lambda path: path.write_text("longer text")]
)
def test_a_file_of_other_content_is_read_again(change, tmp_path, text):
    taken(tmp_path, text)
    change(text)
    assert taken(tmp_path, text) == (files.digest(text), 1)


def test_what_was_written_a_moment_ago_is_not_remembered(tmp_path, text, monkeypatch):
    monkeypatch.undo()
    assert taken(tmp_path, text)[1] == taken(tmp_path, text)[1] == 1


def test_what_changes_while_it_is_read_is_not_remembered(tmp_path, text):
    cache = DigestCache(tmp_path)
    cache.of(text, lambda path: in_place(path) or "digest of half of each")
    cache.save()
    assert taken(tmp_path, text) == (files.digest(text), 1)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": [[1, 2, 3, "x"], "y"]}'])
def test_a_damaged_cache_is_none(content, tmp_path, text):
    (tmp_path / NAME).write_bytes(content)
    assert taken(tmp_path, text)[1] == 1
    assert taken(tmp_path, text)[1] == 0


def test_processes_add_to_each_other_and_files_that_are_gone_are_dropped(tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("another")
    first, second = DigestCache(tmp_path), DigestCache(tmp_path)
    first.of(text), second.of(other)
    first.save(), second.save()
    assert taken(tmp_path, text)[1] == taken(tmp_path, other)[1] == 0
    text.unlink()
    third = tmp_path / "third.txt"
    third.write_text("a third")
    taken(tmp_path, third)
    assert str(text) not in (tmp_path / NAME).read_text()
