"""How fast are shards written and batches made, against what the training step needs?

    python benchmarks/loader.py --size tiny                 a smoke test
    python benchmarks/loader.py --cases bytes bpe           preparation alone

Preparation is `jaxgen.data.prepare`: read a .jsonl, split it, tokenise, write shards with their
digests. Beside it, the tokenizer's own library alone does the least that can be called the same:
it encodes all texts at once and writes the ids to one file. The loader is `jaxgen.data.batches`:
rows of a shuffled epoch, cut from the documents, with targets, weights, segments and positions.
Beside it, torch's DataLoader shuffles and stacks plain windows of the same memory-mapped shard.
What matters is the last figure: tokens/s of the loader over tokens/s of the fastest training step
in results/train_step*.json; 10 is wanted, so that training never waits. The limit is reading the
tokens from the page cache. Figures: results/loader.json; cases of other runs stay there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sides

from jaxgen import data, tokens

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"documents": 40, "copies": 1, "vocabulary": 1024, "tokens": 1 << 15},
    "full": {"documents": 1 << 30, "copies": 4, "vocabulary": 8192, "tokens": 1 << 21},
}
LOADS = {"8 x 256": (8, 256), "32 x 1024": (32, 1024)}
KINDS = ("bytes", "bpe", "tokenizer.json")
CASES = (*KINDS, *LOADS)
OURS, ALONE, PEER = "jaxgen", "the library alone", "torch DataLoader"
PACKAGES = ("jax", "grain", "numpy", "sentencepiece", "tokenizers", "torch")


def texts_of(size: str) -> list[str]:
    """Return Python's documentation, and copies of it that differ a little."""
    about = SIZES[size]
    found = [text for document in data.python_docs() for text in document.texts]
    found = found[: about["documents"]]
    return [f"{number} {text}" for number in range(about["copies"]) for text in found]


def tokenizer_of(kind: str, size: str, texts: list[str], home: Path) -> Any:
    """Return one of our tokenizers; its `model` is the file that its library reads."""
    vocabulary = SIZES[size]["vocabulary"]
    if kind == "bytes":
        return tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    if kind == "bpe":
        return tokens.train(tokens.TokenizerSettings(vocab_size=vocabulary), texts)
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    path = home / "tokenizer.json"
    made.save(str(path))
    return tokens.load(path)


def alone(kind: str, tokenizer: Any, texts: list[str], path: Path) -> None:
    """Encode with the library that our tokenizer is made of, and write the ids."""
    if kind == "bytes":
        ids = np.frombuffer("".join(texts).encode(), np.uint8).astype(np.uint16)
    elif kind == "bpe":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
        ids = np.concatenate([np.asarray(row, np.uint16) for row in processor.encode(texts)])
    else:
        import tokenizers

        engine = tokenizers.Tokenizer.from_str(tokenizer.model.decode())
        rows = engine.encode_batch_fast(texts, add_special_tokens=False)
        ids = np.concatenate([np.asarray(row.ids, np.uint16) for row in rows])
    path.write_bytes(ids.tobytes())


def preparing(kind: str, size: str, home: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of writing shards with one kind of tokenizer."""
    texts = texts_of(size)
    tokenizer = tokenizer_of(kind, size, texts, home)
    source = home / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = data.DataSettings(files=(str(source),))
    made: list[data.Corpus] = []

    def ours() -> None:
        shutil.rmtree(home / "cache", ignore_errors=True)
        made.append(data.prepare(settings, tokenizer, home / "cache"))

    calls = {OURS: ours, ALONE: partial(alone, kind, tokenizer, texts, home / "plain")}
    for call in calls.values():
        call()
    seconds = sides.in_turn(calls, rounds)
    corpus = made[-1]
    count = sum(len(shard.tokens) for shard in (corpus.train, corpus.valid, corpus.test))
    figures = {name: sides.figures(of) for name, of in seconds.items()}
    return {
        "text_bytes": sum(len(text.encode()) for text in texts),
        "tokens": count,
        "seconds": figures,
        "tokens_per_second": {n: round(count / f["median_seconds"]) for n, f in figures.items()},
        "times_as_fast": sides.ratio(seconds, ALONE, OURS),
    }


def loading(load: str, size: str, home: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of making batches of one shape."""
    batch, context = LOADS[load]
    count = max(1, SIZES[size]["tokens"] // (batch * context))
    shard = shard_of(size, home)
    stream = data.batches(shard, context=context, batch=batch, seed=0)
    theirs = loader_of(shard, batch, context)
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: [next(stream) for _ in range(count)],
        PEER: lambda: [next(theirs) for _ in range(count)],
    }
    try:
        for call in calls.values():
            call()
        seconds = sides.in_turn(calls, rounds)
    finally:
        stream.close()
    place = np.arange(count * batch * context) % len(shard.tokens)
    least = sides.once(lambda: shard.tokens[place].astype(np.int32))[1]
    figures = {name: sides.figures(of) for name, of in seconds.items()}
    rates = {n: count * batch * context / f["median_seconds"] for n, f in figures.items()}
    step, where = fastest_step()
    return {
        "batches": count,
        "seconds": figures,
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "times_as_fast": sides.ratio(seconds, PEER, OURS),
        "training_step": {"tokens_per_second": step, "measured": where},
        "times_the_training_step": round(rates[OURS] / step, 1) if step else None,
        "limit": {
            "gather_seconds": round(least, 4),
            "share": round(least / figures[OURS]["median_seconds"], 3),
        },
    }


def shard_of(size: str, home: Path) -> Any:
    """Return the training shard of the documentation in bytes."""
    source = home / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(size)))
    settings = data.DataSettings(files=(str(source),))
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    return data.prepare(settings, tokenizer, home / "cache").train


def loader_of(shard: Any, batch: int, context: int) -> Any:
    """Return endless batches (tokens, targets) of torch's DataLoader over the same file."""
    import torch

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return (len(shard.tokens) - 1) // context

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            begin = index * context
            row = torch.from_numpy(shard.tokens[begin : begin + context + 1].astype(np.int64))
            return row[:-1], row[1:]

    loader = torch.utils.data.DataLoader(Windows(), batch_size=batch, shuffle=True, drop_last=True)

    def endless():
        while True:
            yield from loader

    return endless()


def fastest_step() -> tuple[int, str]:
    """Return (tokens/s of our fastest training step that is on record, where); (0, "") if none."""
    found = [(0, "")]
    for path in sorted(sides.RESULTS.glob("train_step*.json")):
        for shape, of in json.loads(path.read_text()).items():
            if shape == "tiny" or "jaxgen" not in of:
                continue
            kind = of.get("environment", {}).get("devices", {}).get("kind", "")
            found.append((of["jaxgen"]["tokens_per_second"], f"{path.name}, {shape}, {kind}"))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    threads = sides.threads()
    path = sides.RESULTS / "loader.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    cases = known["cases"] if known.get("size") == given.size else {}
    for case in given.cases:
        with tempfile.TemporaryDirectory() as home:
            measure = loading if case in LOADS else preparing
            found = measure(case, given.size, Path(home), given.rounds)
        rates = found["tokens_per_second"]
        told = ", ".join(f"{name} {rate:,} tokens/s" for name, rate in rates.items())
        if case in LOADS:
            times = found["times_the_training_step"]
            told += f"; {times} times the training step, {found['limit']['share']:.0%} of a gather"
        print(f"{case}: {told}", file=sys.stderr)
        cases[case] = found | {"threads": threads, "environment": sides.environment(PACKAGES)}
        known = {case: cases[case] for case in CASES if case in cases}
        sides.write("loader", {"size": given.size, "cases": known})


if __name__ == "__main__":
    main()
