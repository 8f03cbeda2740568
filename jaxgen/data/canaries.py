"""Canaries: made-up secrets in the training text that tell what a model memorises.

Carlini et al. 2019. All of it is a function of the settings, so that `jaxgen audit` knows which
secrets a run has seen, and which it has not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from jaxgen import arguments
from jaxgen.arguments import Range, at_least
from jaxgen.data.document import Document
from jaxgen.errors import ConfigError
from jaxgen.settings import option

HERE = "{secret}"


@arguments.checked(
    number=at_least(0),
    seed=at_least(0),
    repeats=at_least(1),
    digits=at_least(1),
    rate=Range(0, 1, above=True),
)
@dataclass(frozen=True, kw_only=True)
class CanarySettings:
    """Which secrets are made up, and how many of them are planted; ConfigError names a fault."""

    number: int = option("made-up secrets, which `jaxgen audit` looks for; 0: none", 0)
    rate: float = option(
        "chance of each to be in the training text; the audit compares with the others", 0.5
    )
    repeats: int = option("documents of the training text that hold each", 1)
    text: str = option(
        f"such a document, with {HERE} for its secret", f"The secret number is {HERE}."
    )
    digits: int = option("of a secret", 9)
    seed: int = option("of the secrets, and of which are in the text", 0)

    def __post_init__(self) -> None:
        if self.text.count(HERE) != 1:
            raise ConfigError(f"text={self.text!r} must hold {HERE} once")
        if self.digits > 18 or 2 * self.number > 10**self.digits:
            raise ConfigError(
                f"digits={self.digits} must be 18 at most, and enough for twice number="
                f"{self.number} secrets"
            )


def canary_texts(settings: CanarySettings) -> list[str]:
    """Return the document of each secret, planted or not; no two are equal."""
    return _texts(settings, "canary", settings.number, frozenset())


def planted(settings: CanarySettings) -> Bool[np.ndarray, "N"]:
    """Return which of `canary_texts` are in the training text."""
    draws = [_draw(settings, "planted", i) / 2**64 for i in range(settings.number)]
    return np.asarray(draws, np.float64) < settings.rate


def other_texts(settings: CanarySettings, count: int) -> list[str]:
    """Return the documents of other secrets, drawn at random; all there are if `count` exceeds it.

    A canary's rank among them is its exposure.
    """
    canaries = frozenset(canary_texts(settings))
    if 10**settings.digits <= count + len(canaries):
        every = (_text(settings, secret) for secret in range(10**settings.digits))
        return [text for text in every if text not in canaries]
    return _texts(settings, "other", count, canaries)


def canary_documents(settings: CanarySettings) -> Iterator[Document]:
    """Yield what is added to the training text; each secret is a source of its own."""
    for i, (text, inside) in enumerate(zip(canary_texts(settings), planted(settings), strict=True)):
        for _ in range(settings.repeats if inside else 0):
            yield Document(text, f"canary {i}", user=f"canary {i}")


def canary_notes(settings: CanarySettings) -> list[str]:
    """Return what a reader should know of canaries before training on them."""
    if not settings.number:
        return []
    count = int(planted(settings).sum())
    return [
        f"canaries: {count} of {settings.number} made-up secrets are planted in the training text, "
        f"{settings.repeats} documents each; `jaxgen audit` looks for them"
    ]


def _texts(settings: CanarySettings, kind: str, count: int, but: frozenset[str]) -> list[str]:
    texts: dict[str, None] = {}
    number = 0
    while len(texts) < count:
        text = _text(settings, _draw(settings, kind, number) % 10**settings.digits)
        if text not in but:
            texts[text] = None
        number += 1
    return list(texts)


def _text(settings: CanarySettings, secret: int) -> str:
    return settings.text.replace(HERE, f"{secret:0{settings.digits}d}")


def _draw(settings: CanarySettings, kind: str, number: int) -> int:
    words = f"{kind} {settings.seed} {number}".encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "big")
