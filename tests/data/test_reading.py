"""Every kind of text file is read as it is, and every malformed one is named by place."""

import gzip
import json
import sys

import pytest
from data_makers import bytes_tokenizer, write_lines

from jaxgen import data, settings
from jaxgen.data import DataSettings, Tally, sources, streams
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
    "utf16.txt": ("hello".encode("utf-16"), "is UTF-16, not UTF-8 text; save it as UTF-8"),
    "paper.txt": (b"%PDF-1.4 and so on", "is a PDF, not UTF-8 text; convert it"),
    "letter.docx": (b"PK\x03\x04 and so on", "is a zip archive, as .docx and .epub are"),
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


def test_a_glob_without_a_match_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file matches data\.files"):
        texts(tmp_path / "*.txt")
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(DataError, match="only folders without text match"):
        texts(tmp_path)
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises((DataError, BusyError), match="loop"):
        texts(tmp_path / "loop.txt")


ENDINGS = ["a.md", "b.PY", "c.csv", "d.html", "e.rst", "f.tex", "g.TXT", "h", "i.weird", "j.log.gz"]


@pytest.mark.parametrize("name", ENDINGS)
def test_whatever_a_text_file_is_called_it_is_read_as_it_is(tmp_path, name):
    raw = b"a,b\r\n<p>c"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert texts(tmp_path / name) == texts(tmp_path / "*") == texts(tmp_path) == ["a,b\n<p>c"]


def test_a_folder_stands_for_the_text_below_it_and_what_is_left_out_is_said(tmp_path):
    home = tmp_path / "notes [old]"
    for name in ("b.md", "deep/er/a.TXT", "c.jsonl", ".git/config", ".hidden", "void.py"):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if name != "c.jsonl" else '{"text": "c"}')
    (home / "void.py").write_text("")
    (home / "cat.png").write_bytes(b"\x89PNG no text")
    (home / "data.bin").write_bytes(b"1\0" * 9)
    assert texts(home) == ["b.md", "c", "deep/er/a.TXT"]
    settings = DataSettings(files=(str(home),), test_fraction=0.0)
    notes = "\n".join(data.prepare(settings, bytes_tokenizer(), tmp_path / "cache").notes)
    assert "left out as empty or no text" in notes and ".hidden" not in notes
    assert all(name in notes for name in ("void.py", "cat.png", "data.bin"))
    assert texts(tmp_path / "notes*") == texts(home)


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


@pytest.mark.parametrize("name", ["x.jsonl", "x.NDJSON", "x.json", "X.JSON.GZ", "y.json", "z.Json"])
def test_objects_by_line_in_an_array_or_alone_are_read_whatever_the_ending(tmp_path, name):
    records = [{"text": "a\r\nb"}, {"text": "c", "n": 1}]
    raw = "".join(json.dumps(record) + "\r\n" for record in records)
    if name.startswith("y"):
        raw = "\ufeff" + json.dumps(records, indent=1)
    if name.startswith("z"):
        records, raw = records[:1], json.dumps(records[0], indent=1)
    packed = name.endswith("GZ")
    (tmp_path / name).write_bytes(gzip.compress(raw.encode()) if packed else raw.encode())
    assert texts(tmp_path / name) == ["a\nb", "c"][: len(records)]


def test_a_bad_item_of_a_json_array_is_named_or_skipped(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"text": "a"},\n {"txt": "b"}, 3, {"text": "c"}]')
    with pytest.raises(DataError, match=r"x.json: item 2 has no field 'text' \(did you mean 'txt'"):
        texts(path)
    tally = Tally()
    assert texts(path, tally, on_bad_record="skip") == ["a", "c"]
    assert sum(tally.skipped.values()) == 2 and tally.read == path.stat().st_size
    path.write_text('[{"text": "a"}')
    with pytest.raises(DataError, match=r"x.json is not JSON"):
        texts(path)


def test_a_field_within_an_object_is_named_by_its_path(tmp_path):
    records = [{"meta": {"text": "deep"}, "text": "flat", "a.b": "dotted", "a": {"b": "inner"}}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert texts(path, field="meta.text") == ["deep"]
    assert texts(path, field="a.b") == ["dotted"]
    with pytest.raises(DataError, match=r"'meta.txt' \(did you mean 'meta.text'"):
        texts(path, field="meta.txt")
    with pytest.raises(DataError, match=r"has no field 'text.more'"):
        texts(path, field="text.more")
    with pytest.raises(DataError, match=r"'meta' is an object, not a string"):
        texts(path, field="meta")


def test_columns_of_any_kind_of_string_and_within_structs_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    wanted = ["a\r\nb", "c", None, "c"]
    kinds = {
        "plain": pyarrow.string(),
        "large": pyarrow.large_string(),
        "view": pyarrow.string_view(),
        "coded": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }
    columns = {name: pyarrow.array(wanted).cast(kind) for name, kind in kinds.items()}
    structs = [None if text is None else {"inner": {"text": text}} for text in wanted]
    table = pyarrow.table({**columns, "doc": structs, "nothing": pyarrow.nulls(4), "n": [1] * 4})
    path = tmp_path / "x.Parquet"
    parquet.write_table(table, path)
    for field in (*kinds, "doc.inner.text"):
        tally = Tally()
        assert texts(path, tally, field=field, on_bad_record="skip") == ["a\nb", "c", "c"], field
        with pytest.raises(DataError, match=f"row 3: '{field}' is null"):
            texts(path, field=field)
    with pytest.raises(DataError, match="row 1: 'nothing' is null, not a string"):
        texts(path, field="nothing")
    with pytest.raises(DataError, match=r"no column 'doc.text' \(did you mean 'doc.inner.text'"):
        texts(path, field="doc.text")


@pytest.mark.parametrize("name", ["x[1].txt", "*.txt", "a?.txt", "{b}.txt", "c\\d.txt", "-e f.txt"])
def test_a_name_that_is_there_as_written_is_no_glob(tmp_path, monkeypatch, name):
    home = tmp_path / "proj [v2]"
    home.mkdir()
    for other in ("x1.txt", "ab.txt", "b.txt"):
        (home / other).write_text("another")
    (home / name).write_text("this")
    monkeypatch.chdir(home)
    for pattern in (name, str(home / name), sources.absolute(name, ())):
        assert texts(pattern) == ["this"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    assert texts(f"~/{name}") == texts(sources.absolute(f"~/{name}", ())) == ["this"]


def test_a_glob_means_the_same_from_everywhere(tmp_path, monkeypatch):
    home = tmp_path / "proj [v2]"
    home.mkdir()
    (home / "b1.txt").write_text("one")
    (home / "a.de").write_text("eins\n")
    (home / "a.en").write_text("one\n")
    monkeypatch.chdir(home)
    pattern, sides = sources.absolute("b[0-9].txt", ()), sources.absolute("*.{side}", ("de", "en"))
    monkeypatch.chdir(tmp_path)
    assert texts(pattern) == ["one"]
    settings = DataSettings(files=(sides,), sides=("de", "en"))
    assert [d.texts for d in data.documents(settings, form="pairs")] == [("eins", "one")]


def test_text_that_is_held_out_is_no_training_text_whatever_its_name(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "valid.txt")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "test.txt")
    every, valid, test = (str(tmp_path / name) for name in ("*.txt", "valid.txt", "test.txt"))
    found = DataSettings(
        files=(every, f"{tmp_path}/t*.txt"), valid_files=(valid,), test_files=(test,)
    )
    assert [(split, d.text) for split, d in data.assigned(found)] == [
        (name, name) for name in ("train", "valid", "test")
    ]
    with pytest.raises(ConfigError, match=r"link.txt is matched by data.valid_files and data.test"):
        list(data.documents(DataSettings(files=(every,), valid_files=(valid,),
                                         test_files=(f"{tmp_path}/link.txt",))))  # fmt: skip
    with pytest.raises(DataError, match=r"valid.txt...\) is validation or test text as well"):
        list(data.documents(DataSettings(files=(valid,), valid_files=(valid,))))
