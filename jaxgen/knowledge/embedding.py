"""Vectors of passages by an encoder; those of the index that is there are taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.knowledge import folder, vectors
from jaxgen.knowledge.documents import Passages
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.tasks import scoring

# The difference of their vectors tells encoders apart: those of any text may have much in common.
PROBES = ("The quick brown fox jumps over the lazy dog.", "x = [1, 2, 3]")
SAME = 0.998  # cosine of it by one encoder, in another dtype perhaps
CHUNK = 1 << 14  # texts whose float32 vectors and tokens are in memory at once
Progress = Callable[[int, int], None]


def embed(model: LoadedModel, texts: Sequence[str], prompt: str, **options: Any) -> np.ndarray:
    """Return vectors [N, D] of length 1, each of as much of a text as the encoder reads."""
    rows = scoring.embed(model, texts, prompt_name=prompt, overflow="cut", **options)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def embed_passages(
    model: LoadedModel,
    texts: Passages,
    home: Path,
    batch: int,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
    """Return (arrays of all vectors, what is said of them, how many texts had to be embedded).

    home: of the index that may hold some of them.
    """
    probe = _probe(model)
    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    old = _reusable(home, probe)
    codes, scales = (
        np.zeros((len(digests), len(probe)), np.int8),
        np.zeros(len(digests), np.float32),
    )
    fresh = []
    for i, digest in enumerate(digests):
        if digest in old:
            codes[i], scales[i] = old[digest]
        else:
            fresh.append(i)
    for start in range(0, len(fresh), CHUNK):
        part = fresh[start : start + CHUNK]
        report = progress and (lambda done, _, start=start: progress(start + done, len(fresh)))
        rows = embed(model, [texts[i] for i in part], "document", batch=batch, progress=report)
        codes[part], scales[part] = vectors.quantize(rows)
    arranged = vectors.arrange(codes, scales)
    arrays = vectors.arrays_of(arranged)
    arrays["digests"] = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
    return arrays, {"probe": probe.tolist(), "longest": arranged.longest}, len(fresh)


def is_encoder(model: LoadedModel, probe: Sequence[float]) -> bool:
    """Return whether an encoder is the one of a stored probe."""
    return _is_same(_probe(model), probe)


def _probe(model: LoadedModel) -> np.ndarray:
    first, second = embed(model, PROBES, "document")
    return (first - second) / max(float(np.linalg.norm(first - second)), 1e-12)


def _is_same(probe: np.ndarray, other: Sequence[float]) -> bool:
    return len(probe) == len(other) and float(np.dot(probe, np.asarray(other))) > SAME


def _reusable(home: Path, probe: np.ndarray) -> dict[bytes, tuple[np.ndarray, Any]]:
    """Return {digest of a passage: its vector} of the index that is there, by this encoder."""
    if not home.exists():
        return {}
    try:
        stored = folder.read(home, "passages")
    except CheckpointError:  # damaged, or none: it is made anew
        return {}
    if stored.extra["encoder"] is None or not _is_same(probe, stored.extra["probe"]):
        return {}
    arrays, place = stored.arrays, np.argsort(stored.arrays["ids"])
    return {
        digest.tobytes(): (arrays["codes"][place[i]], arrays["scales"][place[i]])
        for i, digest in enumerate(arrays["digests"])
    }
