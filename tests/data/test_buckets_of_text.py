"""Text, and the shards made of it, are the same wherever they lie; shards are read in parts."""

import os

import numpy as np
import pytest
from data_makers import bytes_tokenizer, shard_of, stories, write_lines

from jaxgen import data, files
from jaxgen.data import ranges
from jaxgen.data.shard import open_shard
from jaxgen.errors import BusyError

HOME = "gs://bkt/text"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Blocks that are fetched lie below the test's own folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def uploaded(path, address):
    files.to_path(address).write_bytes(path.read_bytes())


@pytest.mark.parametrize("name", ["", "/*.jsonl", "/one.jsonl"])
def test_text_in_a_bucket_gives_the_tokens_of_the_same_text_here(bucket, tmp_path, name):
    path = write_lines(tmp_path / "one.jsonl", stories(60))
    uploaded(path, f"{HOME}/one.jsonl")
    here = data.prepare(
        data.DataSettings(files=(str(path),)), bytes_tokenizer(), tmp_path / "cache"
    )
    settings = data.DataSettings(files=(HOME + name,))
    there = data.prepare(settings, bytes_tokenizer(), files.to_path("s3://bkt/cache"))
    assert (there.digest, there.reused) == (here.digest, False)
    for split in ("train", "valid", "test"):
        one, other = getattr(here, split), getattr(there, split)
        assert one.digest == other.digest and np.array_equal(one.offsets, other.offsets)
        assert np.array_equal(one.tokens, other.all_tokens)
    assert data.prepare(settings, bytes_tokenizer(), files.to_path("s3://bkt/cache")).reused


def test_a_corpus_that_was_uploaded_by_half_is_made_anew(bucket, tmp_path):
    path = write_lines(tmp_path / "one.jsonl", stories(60))
    settings, cache = data.DataSettings(files=(str(path),)), files.to_path("s3://bkt/cache")
    first = data.prepare(settings, bytes_tokenizer(), cache)
    (first.folder / "corpus.json").unlink()
    again = data.prepare(settings, bytes_tokenizer(), cache)
    assert not again.reused and again.digest == first.digest


def fetched(bucket):
    return sum(method == "cat_file" for method, _ in bucket.calls)


def test_of_a_shard_the_blocks_that_are_asked_for_are_read_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "BLOCK", 4096)
    monkeypatch.setattr(ranges, "RUN", 4)
    here = shard_of(tmp_path, [50_000, 50_000], vocab_size=200_000)
    uploaded(here.path, f"{HOME}/train.tokens")
    there = open_shard(files.to_path(f"{HOME}/train.tokens"), verify=False)
    bucket.calls.clear()
    assert np.array_equal(there.tokens[10:20], here.tokens[10:20]) and fetched(bucket) == 1
    assert np.array_equal(there.tokens[12:18], here.tokens[12:18]) and fetched(bucket) == 1
    places = np.asarray([[90_000, 5], [-1, 30_000]])
    assert np.array_equal(there.tokens[places], here.tokens[places]) and fetched(bucket) == 3
    # Another process of this machine has them too.
    other = open_shard(files.to_path(f"{HOME}/train.tokens"), verify=False)
    bucket.calls.clear()
    assert np.array_equal(other.tokens[places], here.tokens[places]) and fetched(bucket) == 0
    assert np.array_equal(np.asarray(other.tokens), here.tokens)
    assert 0 < fetched(bucket) <= 1 + 400_000 // (4 * 4096) + 4
    assert (
        np.array_equal(other.tokens[99_990:], here.tokens[99_990:]) and len(other.tokens) == 100_000
    )
    assert np.array_equal(other.tokens[20:5:-3], here.tokens[20:5:-3])


def test_a_shard_of_other_content_is_not_taken_for_the_one_before(bucket, tmp_path):
    here = shard_of(tmp_path, [5_000], name="one")
    uploaded(here.path, f"{HOME}/train.tokens")
    first = open_shard(files.to_path(f"{HOME}/train.tokens"), verify=False)
    assert np.array_equal(first.tokens[:9], np.arange(9))
    raw = here.path.read_bytes()
    raw = raw[:4096] + bytes(16) + raw[4112:]
    files.to_path(f"{HOME}/train.tokens").write_bytes(raw)
    second = open_shard(files.to_path(f"{HOME}/train.tokens"), verify=False)
    assert not second.tokens[:4].any() and second.tokens[4] == 4


@pytest.fixture
def pair(bucket, tmp_path, monkeypatch):
    """A shard here, and a function that opens the same in a bucket."""
    monkeypatch.setattr(ranges, "BLOCK", 4096)
    here = shard_of(tmp_path, [9_000], vocab_size=200_000)

    def there(name="train"):
        uploaded(here.path, f"{HOME}/{name}.tokens")
        return open_shard(files.to_path(f"{HOME}/{name}.tokens"), verify=False).tokens

    return here.tokens, there


@pytest.mark.parametrize("key", [slice(8000, 3000, -7), slice(3, 3), slice(None, None, 5000), -1])
def test_any_index_is_numpys(pair, key):
    here, there = pair
    assert np.array_equal(there()[key], here[key])
    mask = np.arange(9_000) % 4_000 == 3_999
    assert np.array_equal(there()[mask], here[mask])


def test_what_is_read_is_the_readers_own_and_blocks_are_those_of_a_file_and_a_start(
    pair, bucket, monkeypatch
):
    here, there = pair
    numbers = there()[10:20]
    numbers[:] = 0
    assert np.array_equal(there()[10:20], here[10:20])
    for change in (lambda: None, lambda: monkeypatch.setattr("jaxgen.host.machine", lambda: "b")):
        change()
        shard = there("other")
        bucket.calls.clear()
        assert np.array_equal(shard[10:20], here[10:20]) and fetched(bucket) == 1


def test_a_block_is_there_only_once_it_is_whole(pair, monkeypatch):
    here, there = pair
    shard = there()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ranges.np, "frombuffer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        shard[:9]
    assert np.array_equal(shard[:9], here[:9])


def test_a_file_that_shrinks_while_it_is_read_is_refused(pair):
    _, there = pair
    shard, path = there(), files.to_path(f"{HOME}/train.tokens")
    path.write_bytes(path.read_bytes()[:9_000])
    with pytest.raises(BusyError, match="has shrunk"):
        shard[:]


def test_blocks_that_nobody_used_for_days_go_and_anothers_folder_is_not_taken(pair, tmp_path):
    _, there = pair
    there()[:9]
    home = tmp_path / f"jaxgen-ranges-{os.getuid()}"
    old = home / "old.blocks"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    there()
    assert not old.exists() and len(list(home.iterdir())) == 2
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BusyError, match="is another user's; set TMPDIR"):
        there()
