"""Every kind of text file is read as it is, and every malformed one is named by place."""

import gzip
import json
import sys

import pytest
from data_makers import write_lines

from jaxgen import data, settings
from jaxgen.data import DataSettings, Tally, streams
from jaxgen.errors import BusyError, ConfigError, DataError


def texts(pattern, tally=None, **fields):
    found = data.documents(DataSettings(files=(str(pattern),), **fields), tally)
    return [document.text for document in found]


def test_text_files_are_one_document_each_in_order_of_name(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two\r\nlines")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\xe2\x80\xa8still one")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"three") + gzip.compress(b" and four"))
    assert texts(tmp_path / "*.txt*") == ["one\u2028still one", "two\nlines", "three and four"]


@pytest.mark.parametrize("packed", (False, True))
def test_json_lines_are_one_document_each(tmp_path, packed):
    wanted = ["a", "line\nfeed", "sep\u2028arator", "日本"]
    raw = b"\xef\xbb\xbf" + write_lines(tmp_path / "x.jsonl", wanted, key="body").read_bytes()
    raw = raw.replace(b"\n", b"\r\n") + b'\n{"body": ""}\n{"body": "no newline at the end"}'
    name = "y.jsonl.gz" if packed else "y.jsonl"
    (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
    tally = Tally()
    found = texts(tmp_path / name, tally, field="body")
    assert found == [*wanted, "no newline at the end"]
    assert tally.skipped == {"empty text": 1}
    assert tally.read == (tmp_path / name).stat().st_size


@pytest.mark.parametrize("packed", (False, True))
def test_parquet_rows_are_one_document_each(tmp_path, packed):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": ["a", "b\nc"], "n": [1, 2]}), tmp_path / "x.parquet")
    path = tmp_path / "x.parquet"
    if packed:
        path = tmp_path / "x.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "x.parquet").read_bytes()))
    assert texts(path) == ["a", "b\nc"]


def test_lines_across_blocks_stay_whole(tmp_path, monkeypatch):
    wanted = ["x" * n for n in (1, 5, 40, 3, 100, 2)]
    path = write_lines(tmp_path / "x.jsonl", wanted)
    monkeypatch.setattr(streams, "BLOCK", 7)
    assert texts(path) == wanted


BAD_LINES = {
    "not JSON": (b'{"text": "a"', "x.jsonl:2 is not JSON"),
    "not an object": (b'["a"]', "x.jsonl:2 is an array, not an object"),
    "no such field": (b'{"txt": "a"}', r"x.jsonl:2 has no field 'text' \(did you mean 'txt'"),
    "not a string": (b'{"text": null}', "x.jsonl:2: 'text' is null, not a string"),
    "a number": (b'{"text": 3}', "x.jsonl:2: 'text' is a number, not a string"),
    "true": (b'{"text": true}', "x.jsonl:2: 'text' is a boolean, not a string"),
    "lone surrogate": (b'{"text": "ab\\ud800"}', r"x.jsonl:2 .*U\+D800, at character 2"),
    "NUL": (b'{"text": "a\\u0000"}', "x.jsonl:2 holds a NUL, at character 1"),
    "not UTF-8": (b'{"text": "a\xff"}', r"x.jsonl:2 is not UTF-8 at byte offset 28 \(0xff\)"),
    "deep": (b"[" * 100_000, "x.jsonl:2 is not JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, name):
    line, words = BAD_LINES[name]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=words) as caught:
        texts(path)
    assert "\n" not in str(caught.value) and "on_bad_record" in str(caught.value)
    tally = Tally()
    assert texts(path, tally, on_bad_record="skip") == ["good", "fine"]
    assert sum(tally.skipped.values()) == 1


BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "latin.txt": (b"caf\xe9 au lait", r"latin.txt is not UTF-8 at byte offset 3 \(0xe9\)"),
    "bom.txt": (b"\xef\xbb\xbfab\xff", "byte offset 5"),
    "utf16.txt": ("hello".encode("utf-16"), "not UTF-8 at byte offset 0"),
    "nul.txt": (b"ab\0cd", "holds a NUL, at character 2"),
    "cut.txt.gz": (gzip.compress(b"some text" * 1000)[:-20], "truncated gzip"),
    "no.txt.gz": (b"not gzip at all", "no sound gzip"),
    "crc.jsonl.gz": (gzip.compress(b'{"text": "a"}\n')[:-8] + b"\0" * 8, "no sound gzip"),
    "x.parquet": (b"PAR1 no more of it", "no whole Parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_or_skipped_and_counted(tmp_path, name):
    raw, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        texts(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    tally = Tally()
    texts(tmp_path / name, tally, on_bad_record="skip")
    assert sum(tally.skipped.values()) == 1


def test_a_truncated_parquet_file_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": ["a"] * 99}), tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "y.parquet").write_bytes(whole[:-30])
    with pytest.raises(DataError, match="no whole Parquet file"):
        texts(tmp_path / "y.parquet")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"body": ["a"]}, "no column 'text'; it has 'body'"),
        ({"text": [1]}, "column 'text' holds int64"),
        ({"text": ["a", None]}, "row 2: 'text' is null"),
    ],
)
def test_a_parquet_column_that_is_no_text_is_refused(tmp_path, table, words):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=words):
        texts(tmp_path / "x.parquet")


def test_a_missing_library_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxgen\[parquet\]'"):
        texts(tmp_path / "x.parquet")


def test_a_gzip_bomb_is_stopped_early(tmp_path, monkeypatch):
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"\n" * 3_000_000))
    monkeypatch.setattr(streams, "FREE", 1 << 20)
    with pytest.raises(DataError, match="more than 200 times its size"):
        texts(tmp_path / "x.txt.gz")


@pytest.mark.parametrize("name", ("x.jsonl", "x.txt"))
def test_a_record_beyond_the_cap_is_refused(tmp_path, monkeypatch, name):
    from jaxgen.data import reading

    (tmp_path / name).write_text(json.dumps({"text": "a" * 5000}))
    monkeypatch.setattr(streams, "MAX_RECORD", 1000)
    monkeypatch.setattr(reading, "MAX_RECORD", 1000)
    with pytest.raises(DataError, match=r"(longer|more) than 1000 B"):
        texts(tmp_path / name)


def test_a_glob_without_a_match_or_of_an_unknown_type_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file matches data\.files"):
        texts(tmp_path / "*.txt")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match=r"x\.csv is of an unknown type; .*\.jsonl"):
        texts(tmp_path / "*")
    with pytest.raises(DataError, match="only folders match"):
        texts(tmp_path)
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises((DataError, BusyError), match="loop"):
        texts(tmp_path / "loop.txt")


def test_a_file_that_two_globs_match_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("once")
    both = (str(tmp_path / "*.txt"), str(tmp_path / "a.*"))
    assert len(list(data.documents(DataSettings(files=both)))) == 1


@pytest.mark.parametrize(
    "fields",
    [{"files": ["a"], "corpus": "python-docs"}, {"test_fraction": 1.0}, {"valid_fraction": -0.1},
     {"test_fraction": 0.5, "valid_fraction": 0.5}, {"workers": -1}, {"field": ""},
     {"files": [" "]}],
)  # fmt: skip
def test_contradictory_settings_are_refused(fields):
    with pytest.raises(ConfigError, match=list(fields)[-1]):
        settings.build(DataSettings, fields)


def test_settings_without_a_corpus_say_how_to_name_one():
    with pytest.raises(ConfigError, match=r"set data\.files, or data\.corpus"):
        list(data.documents(DataSettings()))
