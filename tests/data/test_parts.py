"""A corpus in parts: any order, any machine, and the join is what one machine makes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from data_makers import bytes_tokenizer, stories, write_lines

from jaxgen import data, files
from jaxgen.data import digests, loader, parts
from jaxgen.data.digests import RowDigest
from jaxgen.data.joined import JoinedArray
from jaxgen.data.random import permuted
from jaxgen.errors import ConfigError, DataError

OF = 5
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Files of unequal sizes, one of them empty but for an empty text, and validation files."""
    home = tmp_path_factory.mktemp("texts")
    for number, count in enumerate([30, 1, 120, 4, 60, 9]):
        write_lines(home / f"{number}.jsonl", stories(count, seed=number))
    write_lines(home / "3b.jsonl", [""])
    for number in (0, 2):  # two malformed lines each, of which three in all are shown
        with (home / f"{number}.jsonl").open("a") as file:
            file.write("{}\nnothing\n")
    write_lines(home / "held.jsonl", stories(7, seed=99))
    return home


@pytest.fixture
def settings(texts):
    """Their settings: a hash decides on test text, validation text has a file of its own."""
    return data.DataSettings(
        files=(str(texts),),
        valid_files=(str(texts / "held.jsonl"),),
        split="hash",
        user="folder",
        on_bad_record="skip",
    )


def make(settings, cache, numbers=(4, 0, 3, 1, 2)):
    for number in numbers:
        data.prepare_part(settings, bytes_tokenizer(), cache, data.Part(number, OF))


def number_of(settings, path):
    """Return the part that a file is in."""
    return next(i for i, own in enumerate(parts._of_parts(settings, OF)) if path in own.paths)


def join(settings, cache):
    return data.join_parts(settings, bytes_tokenizer(), cache, OF)


def test_parts_in_any_order_are_the_corpus_of_one_machine(settings, tmp_path):
    whole = data.prepare(settings, bytes_tokenizer(), tmp_path / "one")
    make(settings, tmp_path / "many")
    joined = join(settings, tmp_path / "many")
    assert joined.digest == whole.digest and joined.folder.name == whole.folder.name
    assert joined.skipped == whole.skipped and whole.skipped["empty text"] == 1
    assert joined.notes == whole.notes and any("held.jsonl" in note for note in joined.notes)
    for split in SPLITS:
        mine, its = getattr(joined, split), getattr(whole, split)
        assert isinstance(its.tokens, np.ndarray)
        np.testing.assert_array_equal(mine.all_tokens, its.tokens)
        np.testing.assert_array_equal(mine.offsets, its.offsets)
        assert (mine.digest, mine.documents, mine.text_bytes) == (
            its.digest, its.documents, its.text_bytes)  # fmt: skip
        for what in ("sources", "users"):
            name = f"{split}.{what}.json"
            assert (joined.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    # A run of the same config finds it, and reads the same batches.
    assert data.prepare(settings, bytes_tokenizer(), tmp_path / "many").reused
    rows = [
        next(data.batches(corpus.train, context=40, batch=8, seed=3, workers=workers))
        for corpus, workers in ((whole, 0), (joined, 0))
    ]
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name])


def test_a_part_that_is_made_is_skipped_and_one_that_was_killed_is_made_again(settings, tmp_path):
    make(settings, tmp_path)
    (home,) = tmp_path.glob("parts-*")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.tokens")}
    # Killed while it was written; and when it was whole, but hadn't been said to be.
    (home / "00002.json").unlink()
    (home / "00003.json").unlink()
    (home / "00003/train.tokens").unlink()
    (home / "00003/corpus.json").unlink()
    (home / "00003").rename(home / ".jaxgen-killed")
    with pytest.raises(DataError, match=r"parts 2, 3 of 5 are missing.*--part 2 --of 5"):
        join(settings, tmp_path)
    make(settings, tmp_path)
    after = {path: path.stat().st_mtime_ns for path in home.rglob("0*/*.tokens")}
    assert after.keys() == before.keys()
    assert {path.parent.name for path in after if after[path] != before[path]} == {"00003"}
    assert join(settings, tmp_path).train.documents


def test_what_the_writers_of_parts_have_digested_is_not_read_again(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "FRESH", -1.0)  # the texts are a moment old
    make(settings, tmp_path)
    # Of many writers at once, the last to save what it knows may save that alone.
    (tmp_path / digests.NAME).unlink()
    read = []
    monkeypatch.setattr(data.shard, "_verify", lambda path, *_: read.append(path))
    monkeypatch.setattr(files, "digest", lambda path: pytest.fail(f"{path} is read"))
    corpus = join(settings, tmp_path)
    assert {path.parent for path in read} == {corpus.folder}


def test_text_that_changes_while_its_part_is_made_is_refused(settings, texts, tmp_path):
    class Meddling:
        """A tokenizer during whose work somebody else touches the text."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def encode_many(self, many):
            (texts / "2.jsonl").touch()
            return self.inner.encode_many(many)

    number = number_of(settings, texts / "2.jsonl")
    with pytest.raises(DataError, match="changed while it was read"):
        data.prepare_part(settings, Meddling(bytes_tokenizer()), tmp_path, data.Part(number, OF))
    assert not [*tmp_path.glob("parts-*/*")]


def test_a_part_that_is_damaged_or_of_other_text_is_named(settings, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "FRESH", -1.0)  # the texts are a moment old
    make(settings, tmp_path)
    corpus = join(settings, tmp_path)
    (home,) = tmp_path.glob("parts-*")
    shard = max(home.glob("*/train.tokens"), key=lambda path: path.stat().st_size)
    name = f"{shard.parent.name}/train.tokens"
    raw = bytearray(shard.read_bytes())
    raw[4096] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=f"{name} has changed while it was in use"):
        for _ in range(OF):
            corpus.train.check_unchanged()
    with pytest.raises(DataError, match=f"{name} is damaged"):
        data.prepare(settings, bytes_tokenizer(), tmp_path)
    other = min(home.glob("*/train.tokens"), key=lambda path: path.stat().st_size)
    shard.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=f"{name} is not the part that"):
        data.prepare(settings, bytes_tokenizer(), tmp_path)
    # The text of a part is not what it was, though as long.
    text = (texts / "2.jsonl").read_bytes()
    number = number_of(settings, texts / "2.jsonl")
    try:
        (texts / "2.jsonl").write_bytes(text.replace(b"cat", b"cow"))
        with pytest.raises(DataError, match=f"part {number} of {OF} is missing, or of text that"):
            join(settings, tmp_path)
        part = data.Part(number, OF)
        for reused in (False, True):
            assert data.prepare_part(settings, bytes_tokenizer(), tmp_path, part)[1] == reused
        assert join(settings, tmp_path).digest != corpus.digest
    finally:
        (texts / "2.jsonl").write_bytes(text)


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({"split": "tail"}, {}, "data.split=tail cuts all of the text"),
        ({"canaries": data.settings.CanarySettings(number=3)}, {}, "plants them once"),
        ({}, {"dropout": 0.1}, "tokenizer.dropout=0.1 numbers its draws"),
        ({"corpus": "python-docs", "files": (), "valid_files": ()}, {}, "is one text"),
    ],
)
def test_text_of_which_parts_depend_on_each_other_is_refused(
    settings, tmp_path, changes, options, why
):
    with pytest.raises(ConfigError, match=why):
        data.prepare_part(
            replace(settings, **changes), bytes_tokenizer(), tmp_path, data.Part(0, 2), **options
        )
    assert not any(tmp_path.iterdir())


def test_a_part_beyond_the_last_is_refused():
    with pytest.raises(ConfigError, match="part 5 of 5 isn't there"):
        data.Part(5, 5)


def test_parts_are_whole_files_in_a_row_of_about_as_many_bytes(settings):
    for of in (1, 3, 40):
        owned = parts._of_parts(settings, of)
        names = [path.name for own in owned for path in own.paths]
        assert len(owned) == of
        assert names == [f"{n}.jsonl" for n in ("0", "1", "2", "3", "3b", "4", "5", "held")]


def test_digests_of_stretches_make_that_of_the_row():
    things = [b"", b"a", b"b", b"ab", b"a"]

    def digest(some):
        found = RowDigest()
        for thing in some:
            found = found.add(thing)
        return found

    whole = digest(things)
    for cut in range(len(things) + 1):
        assert digest(things[:cut]).join(digest(things[cut:])) == whole
    others = ([*things, b""], things[1:], things[::-1], [b"", b"a", b"b", b"a", b"ab"])
    assert len({digest(some).hex() for some in (things, *others)}) == 5
    assert RowDigest.of_row(json.loads(json.dumps(whole.row()))) == whole


def test_an_array_of_parts_is_indexed_as_one():
    class Part:
        def __init__(self, tokens):
            self.tokens = tokens

    plain = np.arange(20, dtype=np.uint16)
    pieces = [plain[:7], plain[7:7], plain[7:8], plain[8:]]
    opened = []

    def opening(piece):
        return lambda: (opened.append(len(piece)), Part(piece))[1]

    joined = JoinedArray([opening(p) for p in pieces], [len(p) for p in pieces], "<u2")
    assert joined[2:5].tolist() == [2, 3, 4] and opened == [7]
    for key in (slice(5, 12), slice(7, 8), slice(4, 4), slice(20, 25), slice(-3, None),
                slice(12, 5, -2), np.asarray([[0, 19], [7, 8]]), np.asarray([], np.int64),
                np.int64(6), -1, plain > 9):  # fmt: skip
        np.testing.assert_array_equal(joined[key], plain[key])
    np.testing.assert_array_equal(np.asarray(joined), plain)
    assert joined.shape == (20,) and joined.dtype == np.uint16


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000])
def test_a_permutation_of_places_has_each_once_and_another_for_each_seed(count):
    places = np.arange(count)
    images = [permuted(places, count, seed) for seed in range(20)]
    assert all(sorted(one) == list(places) for one in images)
    assert len({tuple(one) for one in images}) > min(math.factorial(count), 19) // 2


def test_rows_beyond_what_grain_shuffles_come_in_an_order_of_their_own():
    class Rows:
        count, name, shard = 10**12 + 7, "rows", None

        def batch(self, rows, epochs, keys):
            return {"rows": rows, "epochs": epochs}

    order = loader.Order(Rows(), 1024, 7, (0, 1))
    both = [loader.Order(Rows(), 1024, 7, (i, 2))[5]["rows"] for i in range(2)]
    first = order[5]["rows"]
    np.testing.assert_array_equal(np.concatenate(both), first)
    assert len(set(first)) == 1024 and first.min() >= 0 and 9e11 < first.max() < Rows.count
    assert abs(first.mean() / 1e12 - 0.5) < 0.05  # five deviations
    assert abs(np.corrcoef(first, order[6]["rows"])[0, 1]) < 0.16
    assert set(order._rows_at(np.arange(9))).isdisjoint(order._rows_at(Rows.count + np.arange(9)))
    # The batch in which an epoch ends begins the next.
    end = order[Rows.count // 1024]
    assert set(end["epochs"]) == {0, 1}
