"""Tensors of published models by name, and where their numbers lie in ours."""

from __future__ import annotations

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


def linear(theirs: str, ours: str | tuple[str, ...], layout: str) -> tuple[Row, ...]:
    """Return the rows of a projection with its biases, where it has any: [out, in] in `layout`."""
    ours = (ours,) if isinstance(ours, str) else ours
    return (
        Row(f"{theirs}.weight", ours, layout),
        Row(f"{theirs}.bias", tuple(f"{path}_bias" for path in ours), layout.split(",")[0]),
    )


def norm(theirs: str, ours: str, layout: str = "D", when: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """Return the rows of a norm's scale and of its bias, where it has one."""
    return (
        Row(f"{theirs}.weight", (f"{ours}/scale",), layout, when=when),
        Row(f"{theirs}.bias", (f"{ours}/bias",), layout, when=when),
    )
