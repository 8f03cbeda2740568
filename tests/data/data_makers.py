"""Small corpora on disk, and shards of known tokens."""

import json
from pathlib import Path

import numpy as np

from jaxgen import data, tokens
from jaxgen.data.shard import ShardWriter, open_shard

REAL = Path(__file__).parents[2] / ".." / "shared" / "data"


def write_lines(path, texts, key="text"):
    """Write a .jsonl file of one object a text."""
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def stories(count, seed=0):
    """Return `count` different small texts."""
    random = np.random.default_rng(seed)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "slept"]
    return [f"{i} " + " ".join(random.choice(words, random.integers(3, 30))) for i in range(count)]


def bytes_tokenizer():
    """Return the tokenizer that needs no training."""
    return tokens.train(tokens.TokenizerSettings(kind="bytes"), ())


def shard_of(folder, lengths, vocab_size=70_000, name="train"):
    """Write a shard whose documents have these lengths and whose tokens are 0, 1, 2, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder / f"{name}.tokens", vocab_size=vocab_size, tokenizer="t" * 64)
    writer.add(np.arange(sum(lengths), dtype=np.uint32), list(lengths), sum(lengths))
    writer.close()
    return open_shard(folder / f"{name}.tokens", tokenizer="t" * 64)


def prepared(tmp_path, count=200, **fields):
    """Prepare `count` stories with the bytes tokenizer."""
    path = write_lines(tmp_path / "stories.jsonl", stories(count))
    settings = data.DataSettings(files=(str(path),), **fields)
    return settings, data.prepare(settings, bytes_tokenizer(), tmp_path / "cache")
