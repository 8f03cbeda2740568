"""Tensors of published models by name, and where their numbers lie in ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """One tensor of theirs: its name, the parameters of ours it holds, and how they lie in it.

    layout: a word for each of its dimensions, each a product of letters of the legend (or "1", or
    "O" for the second axis of a square, or "G" for the queries of a head of keys); several
    parameters follow one another along the dimension that is marked with a star, in each element
    of what is before the star: "N*H" is a query, a key and a value for each head in turn. unless,
    beside: a parameter of ours without which, or with which alone, there is such a tensor; when: a
    field of the config, and the values with which there is.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str
    unless: str | None = None
    beside: str | None = None
    when: tuple[str, ...] = ()


def linear(
    theirs: str,
    ours: str | tuple[str, ...],
    layout: str,
    *,
    outputs: int = 0,
    join: str = ".",
) -> tuple[Row, ...]:
    """Return the rows of a projection with its biases, where it has any.

    outputs: which word of the layout is that of the outputs, which have the biases. join: what
    stands before the words weight and bias.
    """
    ours = (ours,) if isinstance(ours, str) else ours
    biases = tuple(f"{path}_bias" for path in ours)
    return (
        Row(f"{theirs}{join}weight", ours, layout),
        Row(f"{theirs}{join}bias", biases, layout.split(",")[outputs]),
    )


def queries(theirs: str, ours: str = "attn", names: Iterable[str] = "qkv") -> tuple[Row, ...]:
    """Return the rows of the projections of queries, keys and values, {} being their names."""
    pairs = zip("qkv", names, strict=True)
    return tuple(
        row for x, name in pairs for row in linear(theirs.format(name), f"{ours}/{x}", "NH,D")
    )


def feed(up: str, down: str) -> tuple[Row, ...]:
    """Return the rows of a feed-forward without a gate."""
    return (*linear(up, "feed/up", "F,D"), *linear(down, "feed/down", "D,F"))


def norm(theirs: str, ours: str, layout: str = "D", when: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """Return the rows of a norm's scale and of its bias, where it has one."""
    return (
        Row(f"{theirs}.weight", (f"{ours}/scale",), layout, when=when),
        Row(f"{theirs}.bias", (f"{ours}/bias",), layout, when=when),
    )
