"""An index finds passages where they stand, and is brought up to date, whole or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_documents import save_encoder, write_docs

from jaxgen.cli import app
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.knowledge import folder, index
from jaxgen.store import manifest

QUESTIONS = ["Where does a heron stand?", "über den Dächern", "When do ferries leave?", "渡し舟"]


@pytest.fixture(scope="module")
def built(docs, encoder, tmp_path_factory):
    home = tmp_path_factory.mktemp("built") / "index"
    assert index.build([docs], home, encoder=encoder, size=60, overlap=20).embedded > 5
    return home


def text_of(name):
    path, _, number = name.partition("#")
    raw = Path(path).read_bytes().decode()
    return json.loads(raw.splitlines()[int(number) - 1])["text"] if number else raw


@pytest.mark.parametrize("method", ["bm25", "dense", "hybrid"])
def test_a_hit_stands_in_its_document_where_it_says(built, method):
    opened = index.open_index(built)
    for question in QUESTIONS[:3]:
        hits = opened.search(question, 4, method=method)
        assert hits and [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
        for hit in hits:
            whole = text_of(hit.document).replace("\r\n", "\n")
            assert whole[hit.start : hit.end] == hit.text
    (best, *_) = opened.search("heron stands", method="bm25")
    assert best.document.endswith("birds.md") and "heron stands" in best.text
    assert opened.search("ferries", 1, method="bm25")[0].document.endswith("notes.jsonl#2")
    owl = next(hit for hit in opened.search("Dächern", 2, method="bm25") if "🦉" in hit.text)
    assert owl.shown.startswith("## Owls")


def test_hybrid_adds_reciprocal_ranks(built):
    opened = index.open_index(built)
    ranked = {}
    for method in ("bm25", "dense"):
        for place, hit in enumerate(opened.search(QUESTIONS[0], 100, method=method), 1):
            ranked[hit.number] = ranked.get(hit.number, 0) + 1 / (60 + place)
    best = sorted(ranked.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    hits = opened.search(QUESTIONS[0], 3, exact=True)
    assert [(h.number, h.score) for h in hits] == best


def test_only_new_passages_are_embedded_and_all_is_as_made_anew(encoder, tmp_path):
    docs = write_docs(tmp_path / "docs")
    assert index.build([docs], tmp_path / "old", encoder=encoder).embedded > 1
    assert index.build([docs], tmp_path / "old", encoder=encoder).embedded == 0
    (docs / "stones.txt").unlink()
    (docs / "a.txt").write_text("Gold is rare.")
    assert index.build([docs], tmp_path / "old", encoder=encoder).embedded == 1
    index.build([docs], tmp_path / "new", encoder=encoder)
    old, new = (folder.read(tmp_path / name, "passages") for name in ("old", "new"))
    for name, array in new.arrays.items():
        # A text rounds as its batch lets it: a code may be the next one.
        room = {"codes": {"atol": 1}, "scales": {"rtol": 1e-5}}.get(name, {"rtol": 0})
        np.testing.assert_allclose(old.arrays[name].astype(float), array, err_msg=name, **room)
    assert [path.name for path in (tmp_path / "old").iterdir() if path.is_dir()] == ["00000003"]


def test_passages_that_the_encoder_cuts_are_said(encoder, tmp_path):
    (tmp_path / "long.txt").write_text("heron " * 40)
    with pytest.warns(UserWarning, match="1 of 1 texts were cut to 128 tokens"):
        index.build([tmp_path / "long.txt"], tmp_path / "index", encoder=encoder)


def test_files_of_a_folder_that_are_no_text_are_said(docs, tmp_path):
    shutil.copytree(docs, tmp_path / "docs")
    (tmp_path / "docs" / "a.pdf").write_bytes(b"%PDF-1.4\n")
    with pytest.warns(UserWarning, match=r"left out as empty or no text: .*a\.pdf$"):
        index.build([tmp_path / "docs"], tmp_path / "index")


def test_a_field_of_records_is_read_and_a_bad_record_is_left_out_if_asked(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "Gold is rare."}\n{"body": \n')
    with pytest.raises(DataError, match="on_bad_record=skip"):
        index.build([tmp_path / "a.jsonl"], tmp_path / "index", field="body")
    with pytest.warns(UserWarning, match=r"left out: 1 \(not JSON\)"):
        index.build([tmp_path / "a.jsonl"], tmp_path / "index", field="body", on_bad_record="skip")
    (hit,) = index.open_index(tmp_path / "index").search("gold")
    assert hit.text == "Gold is rare."


def test_an_index_of_words_needs_no_encoder_and_finds_nothing_without_a_word(docs, tmp_path):
    index.build([docs], tmp_path / "words")
    opened = index.open_index(tmp_path / "words")
    assert opened.search("heron")[0].text and not opened.search("zzz")
    assert opened.confidence("zzz", []) == 0
    assert opened.confidence("granite", opened.search("granite")) == 1
    with pytest.raises(ConfigError, match="method=dense needs vectors"):
        opened.search("heron", method="dense")


def test_confidence_is_higher_for_what_is_there(built):
    opened = index.open_index(built)
    there, absent = (
        opened.confidence(q, opened.search(q)) for q in ("basalt volcanoes", "quarterly tax forms")
    )
    assert 1 >= there > absent >= 0


def damage(name, change):
    def apply(home):
        path = next(home.glob(f"0*/{name}"))
        raw = bytearray(path.read_bytes())
        path.unlink() if change == "remove" else path.write_bytes(change(raw))

    return apply


def newer(home):
    (step,) = home.glob("0*")
    record = manifest.read_manifest(step)
    record.extra["format"] = folder.FORMAT + 1
    manifest.write_manifest(step, record)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage("codes.npy", lambda raw: raw[:-1]), "codes.npy has .* bytes instead of .* again"),
        (damage("texts.npy", lambda raw: raw[:-1] + b"?"), "texts.npy has been changed"),
        (damage("manifest.json", lambda raw: raw[:-9]), "manifest.json is no manifest"),
        (damage("spans.npy", "remove"), "spans.npy is missing"),
        (newer, "is of format 2, this jaxgen reads 1; upgrade jaxgen"),
        (shutil.rmtree, "does not exist; `jaxgen index"),
        (lambda home: [shutil.rmtree(p) for p in home.glob("0*")], "is no index of passages"),
    ],
)
def test_what_is_no_sound_index_is_refused_in_a_line(built, tmp_path, change, said):
    shutil.copytree(built, home := tmp_path / "index")
    change(home)
    with pytest.raises(CheckpointError, match=said) as caught:
        index.open_index(home)
    assert "\n" not in str(caught.value)


def test_sizes_alone_are_compared_if_asked(built, tmp_path):
    shutil.copytree(built, home := tmp_path / "index")
    damage("texts.npy", lambda raw: raw[:-1] + b"?")(home)
    assert index.open_index(home, verify="off").size


def test_an_index_of_another_encoder_is_refused(built, encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "moved")
    assert index.open_index(built, encoder=tmp_path / "moved").encoder.home == tmp_path / "moved"
    other = save_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="is of another encoder"):
        index.open_index(built, encoder=other)


def test_a_folder_with_other_files_is_never_written_into(docs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds work\.txt, so it is no index"):
        index.build([docs], tmp_path / "mine")
    assert (tmp_path / "mine" / "work.txt").read_text() == "x"


def test_documents_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("  \n")
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff" * 40)
    for name, said in [
        ("empty", "holds no text"), ("blank.txt", "holds no text"), ("absent", "does not exist"),
        ("binary.txt", "is no text"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            index.build([tmp_path / name], tmp_path / "index")
    assert not list(tmp_path.glob("index/0*"))


def test_the_verbs_index_and_search(docs, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert app.main(["index", str(docs), "--out", "i", "--encoder", str(encoder)]) == 0
    assert "passages   " in capsys.readouterr().out
    assert app.main(["search", "i", "heron stands", "--method", "bm25"]) == 0
    assert "birds.md:0-" in capsys.readouterr().out
    assert app.main(["search", "i", "heron", "--json", "--passages", "1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == text_of(row["document"])[row["start"] : row["end"]]
    assert app.main(["search", "i", "zzzz", "--method", "bm25"]) == 0
    assert "no passage of the index fits 'zzzz'" in capsys.readouterr().err
    assert app.main(["search", "i", "heron", "granite", "--method", "bm25"]) == 0
    assert "=== 2 of 2: granite\n" in capsys.readouterr().out
    assert app.main(["index", str(docs), "--out", "w", "--field", "text"]) == 0
    capsys.readouterr()
    assert app.main(["search", "w", "heron", "--method", "dense"]) == 2
    assert "--method dense needs vectors" in capsys.readouterr().err
    assert app.main(["index", str(docs / "birds.md"), "--out", "w", "--field", "body"]) == 2
    assert "--field body has no effect: no document is a .jsonl" in capsys.readouterr().err
    wrong = {
        ("search", "i", " "): 2,
        ("search", "absent", "x"): 4,
        ("index", str(tmp_path / "none"), "--out", "j"): 7,
        ("index", str(docs), "--out", "j", "--size", "5", "--overlap", "5"): 2,
        ("index", str(docs), "--out", ""): 2,
        ("index", str(docs), "--out", "j", "--batch", "2"): 2,
        ("search", "i", "x", "--method", "bm25", "--exact"): 2,
    }
    for words, code in wrong.items():
        assert app.main(list(words)) == code, words
        said = capsys.readouterr().err
        assert said.count("jaxgen: error") == 1 and said.count("\n") <= 2
