"""Quantised weights in the tensors of another layout: their integers, which aren't rounded again.

An output of a weight of ours is a row of a tensor of theirs, whatever the order of heads and
whatever else is in it, so integers, scales and zero points move row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.adapters.adapter import plain
from jaxgen.adapters.sites import Site
from jaxgen.models.families.weights import Link, Theirs, part_of
from jaxgen.ops.int4_groups import ZERO, Int4Groups
from jaxgen.ops.int8 import Int8, Int8Activations
from jaxgen.ops.int8_blocks import Int8Blocks

Sites = Mapping[str, Site]


class Codes(NamedTuple):
    """A matrix [R, C] as (integers - zero) * scale, with a scale for each group of a row.

    integers: of `bits`, from -2^(bits - 1) on, int8. scale: [R, G] float32. zero: [R, G] int8, or
    None of symmetric ones. rounds_inputs: whether inputs are rounded to int8 as well.
    """

    integers: Any
    scale: Any
    zero: Any
    bits: int
    rounds_inputs: bool = False

    @property
    def group(self) -> int:
        """The columns that share a scale."""
        return self.integers.shape[1] // self.scale.shape[1]

    def rows(self, order: Any) -> Codes:
        """Return some rows of it, in an order."""
        zero = None if self.zero is None else self.zero[order]
        return self._replace(integers=self.integers[order], scale=self.scale[order], zero=zero)

    def numbers(self) -> np.ndarray:
        """Return the float32 numbers [R, C] that they stand for."""
        blocks = self.integers.reshape(*self.scale.shape, -1).astype(np.float32)
        if self.zero is not None:
            blocks -= self.zero[..., None]
        return (blocks * self.scale[..., None]).reshape(self.integers.shape)


def of_leaf(leaf: Any) -> Codes | None:
    """Return one weight's integers, [outputs, inputs]; None of other leaves."""
    zero, bits = None, 8
    if isinstance(leaf, Int4Groups):
        bits, packed = 4, np.asarray(leaf.values)
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        integers = nibbles.astype(np.int8) - np.int8(ZERO)
        if leaf.zero is not None:
            zero = np.asarray(leaf.zero).astype(np.int8).reshape(len(packed), -1) - np.int8(ZERO)
    elif isinstance(leaf, Int8 | Int8Blocks):
        integers = np.asarray(leaf.values)
    else:
        return None
    scale = np.asarray(leaf.scale, np.float32).reshape(len(integers), -1)
    return Codes(integers, scale, zero, bits, isinstance(leaf, Int8Activations))


def to_leaf(codes: Codes, outer: tuple[int, ...], num_contracted: int) -> Any:
    """Return a weight of integers [outputs, inputs], of 8 bits symmetric; outer: output axes."""
    scale = codes.scale.reshape(*outer, -1)
    if codes.bits == 4:
        nibbles = (codes.integers + np.int8(ZERO)).astype(np.uint8)
        nibbles = nibbles.reshape(len(nibbles), -1, 2)
        zero = codes.zero
        if zero is not None:
            zero = (zero + np.int8(ZERO)).astype(np.uint8).reshape(scale.shape)
        return Int4Groups(nibbles[..., 0] | nibbles[..., 1] << 4, scale, zero, num_contracted)
    if codes.scale.shape[1] > 1:
        return Int8Blocks(codes.integers, scale, num_contracted)
    kind = Int8Activations if codes.rounds_inputs else Int8
    return kind(codes.integers, scale[..., 0], num_contracted)


def rows_of(link: Link, shape: tuple[int, ...], site: Site | None) -> np.ndarray | None:
    """Return which row of a tensor of theirs each output of a weight is.

    site: of the weight; None: a table. None where inputs are not the columns, in their order.
    """
    if len(shape) != 2:
        return None
    ours = link.read(np.arange(shape[0] * shape[1]).reshape(shape))
    places = ours if site is None else ours.reshape(site.num_inputs, -1).T
    rows = places[:, 0] // shape[1]
    as_rows = rows[:, None] * shape[1] + np.arange(shape[1])
    return rows if np.array_equal(places, as_rows) else None


def gather(theirs: Theirs, flat: Mapping[str, Any], by_path: Sites) -> Codes | None:
    """Return a tensor of theirs as integers; None where a part is plain or of another form."""
    parts, homes = [], []
    for link in theirs.links:
        codes = of_leaf(part_of(flat[link.path], link.at))
        rows = None if codes is None else rows_of(link, theirs.shape, by_path.get(link.path))
        if codes is None or rows is None:
            return None
        parts.append(codes)
        homes.append(rows)
    first = parts[0]
    if len({(one.group, one.zero is None, *one[3:]) for one in parts}) > 1:
        return None
    integers, scale = (np.concatenate([one[i] for one in parts]) for i in range(2))
    zero = None if first.zero is None else np.concatenate([one.zero for one in parts])
    whole = Codes(integers, scale, zero, first.bits, first.rounds_inputs)
    return whole.rows(np.argsort(np.concatenate(homes)))


def scatter(codes: Codes, link: Link, site: Site | None, outer: tuple[int, ...], dtype: Any) -> Any:
    """Return the weight that a link takes out of integers of theirs; site: None of a table.

    dtype: of one without a leaf, which becomes numbers: 8 bits with zero points.
    """
    rows = rows_of(link, codes.integers.shape, site)
    has_leaf = codes.bits == 4 or codes.zero is None
    if rows is None or not has_leaf:
        return link.read(codes.numbers().astype(dtype))
    return to_leaf(codes.rows(rows), outer, 1 if site is None else len(site.inner))


def numbers(theirs: Theirs, flat: Mapping[str, Any], by_path: Sites, dtype: Any) -> np.ndarray:
    """Return a tensor of theirs made of our parameters, of which some may be quantised."""
    tensor = np.empty(theirs.shape, dtype)
    for link in theirs.links:
        leaf = part_of(flat[link.path], link.at)
        codes, site = of_leaf(leaf), by_path.get(link.path)
        if codes is not None:
            dense = codes.numbers()
            leaf = dense if site is None else dense.T.reshape(site.shape)
        elif site is not None and hasattr(leaf, "contract"):
            leaf = plain(leaf, site)
        link.write(tensor, np.asarray(leaf, dtype))
    return tensor
