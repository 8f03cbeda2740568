"""Text to shards: split, cached, checked."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from data_makers import REAL, bytes_tokenizer, prepared, stories, write_lines

from jaxgen import data, files, tokens
from jaxgen.data import DataSettings, open_shard, parallel, shard
from jaxgen.data.settings import FEW
from jaxgen.data.shard import HEADER
from jaxgen.data.split import SPLITS
from jaxgen.errors import BusyError, DataError


def texts_of(shard):
    ends = shard.offsets.astype(int)
    return [bytes(shard.tokens[a + 1 : b - 1].astype(np.uint8)).decode() for a, b in pairwise(ends)]


def test_each_document_is_in_one_split_between_bos_and_eos(tmp_path):
    _, corpus = prepared(tmp_path)
    found = {split: texts_of(getattr(corpus, split)) for split in SPLITS}
    assert Counter(chain(*found.values())) == Counter(stories(200))
    assert len(found["train"]) > 150 and found["valid"]
    for split in SPLITS:
        shard = getattr(corpus, split)
        begins, ends = shard.offsets[:-1].astype(int), shard.offsets[1:].astype(int) - 1
        assert (shard.tokens[begins] == 256).all() and (shard.tokens[ends] == 257).all()
        assert shard.text_bytes == sum(len(text.encode()) for text in found[split])
        assert shard.documents == len(found[split])
    wanted = data.training_texts(DataSettings(files=(str(tmp_path / "stories.jsonl"),)))
    assert list(wanted) == found["train"]


def test_the_hash_split_is_of_the_text_alone(tmp_path):
    def split(texts):
        path = write_lines(tmp_path / "x.jsonl", texts)
        pairs = data.assigned(DataSettings(files=(str(path),), valid_fraction=0.3))
        return {document.text: name for name, document in pairs}

    few, many = split(stories(50)), split([*reversed(stories(50)), *stories(60, seed=1)])
    assert few.items() <= many.items()


def test_shakespeare_splits_as_nanogpt_does(tmp_path):
    path = REAL / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("the text is not here")
    settings = DataSettings(files=(str(path),), split="tail", valid_fraction=0.1, test_fraction=0.0)
    whole = path.read_text()
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="chars"), [whole])
    corpus = data.prepare(settings, tokenizer, tmp_path)
    assert (len(corpus.train.tokens), len(corpus.valid.tokens)) == (1_003_854, 111_540)
    assert len(corpus.test.tokens) == 0 and tokenizer.vocab_size == 65
    ids = np.concatenate([corpus.train.tokens, corpus.valid.tokens])
    assert tokenizer.decode(ids.tolist()) == whole


@pytest.mark.parametrize("fractions", ((0.1, 0.0), (0.3, 0.3), (0.0, 0.5)))
def test_the_tail_split_cuts_at_characters_and_keeps_all(tmp_path, fractions):
    texts = ["日本語" * 7, "a", "é" * 40, "xyz"]
    path = write_lines(tmp_path / "x.jsonl", texts)
    settings = DataSettings(
        files=(str(path),), split="tail", valid_fraction=fractions[0], test_fraction=fractions[1]
    )
    corpus = data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    parts = {split: "".join(texts_of(getattr(corpus, split))) for split in SPLITS}
    total = sum(map(len, texts))
    assert "".join(parts.values()) == "".join(texts)
    assert len(parts["train"]) == int(total * (1 - fractions[0] - fractions[1]))


def test_a_later_start_reads_neither_text_nor_shards_until_one_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxgen.data.digests.FRESH", -3600.0)  # all was written just now
    read = []

    def noted(plain):
        return lambda path, *more: (read.append(path.name), plain(path, *more))[1]

    monkeypatch.setattr(files, "digest", noted(files.digest))
    monkeypatch.setattr(shard, "_verify", noted(shard._verify))
    settings, first = prepared(tmp_path, 60)
    shards = [f"{split}.tokens" for split in SPLITS]
    assert sorted(read) == sorted(["stories.jsonl", *shards])
    read.clear()
    again = data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    assert again.reused and again.digest == first.digest and not read
    (first.folder / "valid.tokens").touch()
    data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    assert read == ["valid.tokens"]


def test_shards_are_written_once_and_reused(tmp_path):
    settings, first = prepared(tmp_path)
    again = data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    assert (first.reused, again.reused) == (False, True)
    assert again.digest == first.digest and again.train.digest == first.train.digest
    (tmp_path / "moved").mkdir()
    os.rename(tmp_path / "stories.jsonl", tmp_path / "moved" / "other.jsonl")
    moved = DataSettings(files=(str(tmp_path / "moved" / "*.jsonl"),))
    assert data.prepare(moved, bytes_tokenizer(), tmp_path / "cache").reused


@pytest.mark.parametrize("change", ("text", "tokenizer", "split", "fraction"))
def test_what_decides_the_tokens_decides_the_folder(tmp_path, change):
    _, first = prepared(tmp_path)
    path, tokenizer, fields = str(tmp_path / "stories.jsonl"), bytes_tokenizer(), {}
    if change == "text":
        write_lines(tmp_path / "stories.jsonl", [*stories(200), "one more"])
    elif change == "tokenizer":
        tokenizer = tokens.train(tokens.TokenizerSettings(kind="chars"), stories(200))
    else:
        fields = {"split": {"split": "tail"}, "fraction": {"valid_fraction": 0.2}}[change]
    other = data.prepare(DataSettings(files=(path,), **fields), tokenizer, tmp_path / "cache")
    assert not other.reused and other.folder != first.folder
    assert (other.digest == first.digest) == (change == "tokenizer")


def test_skipped_records_are_counted(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", stories(100))
    path.write_text(path.read_text() + "oops\n{}\nno\n")
    settings = DataSettings(files=(str(path),), on_bad_record="skip")
    for _ in range(2):
        corpus = data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
        assert corpus.skipped == {"not JSON": 2, "no such field": 1}


def test_progress_ends_at_the_whole(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", stories(100))
    seen = []
    settings = DataSettings(files=(str(path),))
    data.prepare(settings, bytes_tokenizer(), tmp_path, progress=lambda *a: seen.append(a))
    size = path.stat().st_size
    assert seen[-1] == (size, size) and all(0 < done <= total == size for done, total in seen)


@pytest.mark.parametrize("count", (1, 3))
def test_a_split_without_text_suggests_the_tail(tmp_path, count):
    path = write_lines(tmp_path / "x.jsonl", stories(count))
    settings = DataSettings(files=(str(path),), split="hash")
    with pytest.raises(DataError, match=r"without text; set data\.split=tail"):
        data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("count", "kind"), [(1, "tail"), (FEW - 1, "tail"), (FEW, "hash")])
def test_few_documents_are_split_by_tail_by_themselves_and_it_is_said(tmp_path, count, kind):
    path = write_lines(tmp_path / "x.jsonl", stories(count, seed=3))
    shards = {}
    for split in ("auto", kind):
        settings = DataSettings(files=(str(path),), split=split, test_fraction=0.0)
        shards[split] = data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    found, same = shards["auto"], shards[kind]
    assert found.folder == same.folder and len(found.valid.tokens)
    assert same.notes == () and ("the last 5 % of the text" in "".join(found.notes)) == (
        kind == "tail"
    )


def test_a_corpus_of_nothing_but_bad_records_says_so(tmp_path):
    (tmp_path / "x.jsonl").write_text("oops\n")
    settings = DataSettings(files=(str(tmp_path / "x.jsonl"),), on_bad_record="skip")
    with pytest.raises(DataError, match=r"holds no text .*not JSON: 1; .*:1 "):
        data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")


def test_a_bad_record_leaves_nothing_half_written(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", stories(100))
    path.write_text(path.read_text() + "oops\n")
    with pytest.raises(DataError, match=r"x\.jsonl:101"):
        data.prepare(DataSettings(files=(str(path),)), bytes_tokenizer(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", stories(100))
    with pytest.raises(BusyError, match="not a folder"):
        data.prepare(DataSettings(files=(str(path),)), bytes_tokenizer(), path)


def flip(raw):
    raw[HEADER + 5] ^= 1


def other_header(old, new):
    def change(raw):
        assert old in bytes(raw[:HEADER])
        raw[:HEADER] = bytes(raw[:HEADER]).replace(old, new, 1)[:HEADER].ljust(HEADER)

    return change


DAMAGE = {
    "one bit": (flip, "sha256"),
    "cut short": (lambda raw: raw.__delitem__(slice(-8, None)), "its header tells of"),
    "odd byte": (lambda raw: raw.append(0), "its header tells of"),
    "no header": (lambda raw: raw.__setitem__(slice(0, 16), b"x" * 16), "does not begin"),
    "empty": (lambda raw: raw.clear(), "does not begin"),
    "other dtype": (other_header(b'"u2"', b'"u4"'), "its header tells of"),
    "unknown dtype": (other_header(b'"u2"', b'"i8"'), "wrong kind"),
    "small vocabulary": (other_header(b'"vocab_size": 259', b'"vocab_size": 99'), "outside its"),
    "negative count": (other_header(b'"documents": ', b'"documents": -'), "wrong kind"),
    "no count": (other_header(b'"documents"', b'"docs"'), "header can't be read"),
    "other tokenizer": (other_header(b'"tokenizer": "', b'"tokenizer": "0'), "another tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_refused_in_one_line(tmp_path, name):
    settings, corpus = prepared(tmp_path)
    change, words = DAMAGE[name]
    path = corpus.folder / "train.tokens"
    raw = bytearray(path.read_bytes())
    change(raw)
    path.unlink()
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ("corpus.json", "valid.tokens"))
def test_a_missing_file_of_the_cache_is_refused(tmp_path, name):
    settings, corpus = prepared(tmp_path)
    (corpus.folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is damaged.*remove .* to write it anew"):
        data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    from data_makers import shard_of

    assert shard_of(tmp_path / "a", [10], vocab_size=65536).tokens.dtype == np.uint16
    wide = shard_of(tmp_path / "b", [70_000, 3], vocab_size=80_000)
    assert wide.tokens.dtype == np.uint32 and wide.tokens[-1] == 70_002
    assert open_shard(wide.path).digest == wide.digest


def test_tokenising_in_processes_gives_the_same_shards(tmp_path, monkeypatch):
    from jaxgen.data import writing

    settings, alone = prepared(tmp_path)
    monkeypatch.setattr(parallel, "WORTH_IT", 0)
    monkeypatch.setattr(writing, "CHUNK", 500)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    together = data.prepare(settings, bytes_tokenizer(), tmp_path / "other")
    assert not together.reused
    for split in SPLITS:
        assert getattr(together, split).digest == getattr(alone, split).digest


class Killed:
    """A tokenizer whose process dies."""

    def __init__(self):
        inner = bytes_tokenizer()
        self.special, self.vocab_size = inner.special, inner.vocab_size
        self.fingerprint = inner.fingerprint
        self.parent = os.getpid()

    def encode_many(self, texts):
        assert os.getpid() != self.parent
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_tokenising_process_is_an_error_and_no_wait(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "x.jsonl", stories(100))
    monkeypatch.setattr(parallel, "WORTH_IT", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    with pytest.raises(DataError, match="tokenising process died"):
        data.prepare(DataSettings(files=(str(path),)), Killed(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_killed_preparation_leaves_no_folder_that_is_taken_for_whole(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", stories(100))
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from jaxgen import data, tokens\n"
        "t = tokens.train(tokens.TokenizerSettings(kind='bytes'), ())\n"
        "s = data.DataSettings(files=(sys.argv[1],))\n"
        "kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "data.prepare(s, t, Path(sys.argv[2]), progress=kill)"
    )
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", program, str(path), str(cache)])
    assert done.returncode == -signal.SIGKILL
    assert [name.name.startswith(".tmp-") for name in cache.iterdir()] == [True]
    settings = DataSettings(files=(str(path),))
    assert not data.prepare(settings, bytes_tokenizer(), cache).reused


def test_what_killed_preparations_left_is_removed_once_nobody_can_be_writing_it(tmp_path):
    drafts = {name: tmp_path / "cache" / f".tmp-{name}" for name in ("old", "busy", "new")}
    for name, draft in drafts.items():
        draft.mkdir(parents=True)
        (draft / "train.tokens").write_bytes(b"half")
        if name != "new":
            os.utime(draft, (0, 0))
        if name == "old":
            os.utime(draft / "train.tokens", (0, 0))
    prepared(tmp_path)
    assert {name: draft.exists() for name, draft in drafts.items()} == {
        "old": False,
        "busy": True,
        "new": True,
    }


def test_dropout_cuts_the_training_text_a_number_of_times(tmp_path):
    texts = stories(100)
    tokenizer = tokens.train(tokens.TokenizerSettings(vocab_size=300), texts)
    settings = DataSettings(files=(str(write_lines(tmp_path / "x.jsonl", texts)),))
    plain = data.prepare(settings, tokenizer, tmp_path / "cache")
    drawn = data.prepare(settings, tokenizer, tmp_path / "cache", dropout=0.2, draws=3)
    assert not drawn.reused and drawn.digest == plain.digest
    rows = [np.split(c.train.tokens, c.train.offsets[1:-1]) for c in (plain, drawn)]
    plain_texts, drawn_texts = ([tokenizer.decode(row.tolist()) for row in part] for part in rows)
    assert drawn_texts == plain_texts * 3
    assert drawn.train.text_bytes == 3 * plain.train.text_bytes
    size = len(plain_texts)
    draws = {np.concatenate(rows[1][i : i + size]).tobytes() for i in (0, size, 2 * size)}
    assert len(draws) == 3
    runs = json.loads((drawn.folder / "train.sources.json").read_bytes())
    assert sum(number for _, number in runs) == drawn.train.documents == 3 * size
    assert drawn.valid.digest == plain.valid.digest
    again = data.prepare(settings, tokenizer, tmp_path / "other", dropout=0.2, draws=3)
    assert again.train.digest == drawn.train.digest
    assert data.prepare(settings, tokenizer, tmp_path / "cache", dropout=0.2, draws=3).reused


def test_dropout_cuts_texts_that_have_classes_and_not_their_classes(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(stories(100))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(files=(str(path),), sides=("text", "label"))
    tokenizer = tokens.train(tokens.TokenizerSettings(vocab_size=300), stories(100))
    about = {"form": "classes", "labels": ("a", "b")}
    plain, drawn = (
        data.prepare(settings, tokenizer, tmp_path / "cache", **about, dropout=p).train
        for p in (0.0, 0.3)
    )
    sizes = [np.diff(shard.offsets.astype(int)) for shard in (plain, drawn)]
    assert (sizes[1][1::2] == 1).all() and sizes[1][::2].sum() > sizes[0][::2].sum()
