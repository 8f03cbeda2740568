"""The weight table of a family, laid out for one config: every tensor of theirs, both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models import api
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row
from jaxgen.nn.stack import layer_path

ONE = "1"  # in a layout: an axis of size 1 that ours lack


class Link(NamedTuple):
    """A parameter of ours and the part of a tensor that holds it, or one layer or expert of it.

    at: the number of the layer, if ours are stacked, and of the expert or stream, if theirs are
    apart. cut:
    that part, of the tensor in the shape `split`. sizes: its axes one by one. order: the
    permutation that makes them ours, in the shape `shape`.
    """

    path: str
    at: tuple[int, ...]
    split: tuple[int, ...]
    cut: tuple[slice, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """Return our parameter (or its layer), where it can be as a view of their tensor."""
        part = tensor.reshape(self.split)[self.cut].reshape(self.sizes)
        return part.transpose(self.order).reshape(self.shape)

    def write(self, tensor: np.ndarray, ours: np.ndarray) -> None:
        """Put our parameter (or its layer) where it belongs in their tensor."""
        part = ours.reshape([self.sizes[axis] for axis in self.order])
        part, home = part.transpose(np.argsort(self.order)), tensor.reshape(self.split)
        home[self.cut] = part.reshape(home[self.cut].shape)


class Theirs(NamedTuple):
    """A tensor of theirs: its shape, and the links that fill it."""

    shape: tuple[int, ...]
    links: tuple[Link, ...]


def table(family: Family, config: ModelConfig) -> dict[str, Theirs]:
    """Return {name of theirs: Theirs} of all tensors that a model of this config has."""
    shapes = {path: leaf.shape for path, leaf in tree.flatten(api.abstract(config)).items()}
    letters = tree.flatten(api.axes(config))
    found = {}
    for name, row, home, index in _rows(family, config):
        paths = [f"{home}{path}" for path in row.ours]
        refused = row.unless is not None and f"{home}{row.unless}" in shapes
        lacking = row.beside is not None and f"{home}{row.beside}" not in shapes
        other = row.when and getattr(config, row.when[0]) not in row.when[1:]
        if paths[0] in shapes and not refused and not lacking and not other:
            at = () if index is None else (index,)
            each = [(*at, i) for i in range(shapes[paths[0]][len(at)])] if "{}" in name else [at]
            for one in each:
                found[name.format(*one[-1:])] = _theirs(row, paths, one, shapes, letters, config)
    if lost := shapes.keys() - {link.path for theirs in found.values() for link in theirs.links}:
        raise CheckpointError(f"{family.model_type} has no tensor for {', '.join(sorted(lost))}")
    return found


def _rows(family: Family, config: ModelConfig):
    """Yield (name of theirs, row, where ours begins, layer in our stack)."""
    for row in family.head_rows.get(config.head, ()):
        yield row.theirs, row, "", None
    for name, row, home, index in _body(family, config):
        if config.head in family.moved and name.startswith(family.prefix):
            name = family.moved[config.head] + name.removeprefix(family.prefix)
        yield name, row, home, index


def _body(family: Family, config: ModelConfig):
    if config.topology == "encoder" and family.encoder:
        yield from _encoder(family, config)
        return
    for row in family.rows:
        yield row.theirs, row, "", None
    # Each once, whatever number of layers it is of.
    places = dict.fromkeys(layer_path(config, layer) for layer in range(config.layers))
    for number, (home, index) in enumerate(places):
        inside = divmod(number, len(config.pattern)) if config.weight_sets else (number,)
        for row in family.layer_rows:
            yield family.layer.format(*inside) + row.theirs, row, f"{home}/", index
    tower = "encoder/" if config.topology == "encoder_decoder" else "vision/"
    if config.topology != "encoder_decoder" and config.vision is None:
        return
    encoder = config.encoder()
    for layer in range(encoder.layers):
        home, index = layer_path(encoder, layer)
        for row in family.encoder_rows:
            yield family.encoder.format(layer) + row.theirs, row, f"{tower}{home}/", index


def _encoder(family: Family, config: ModelConfig):
    """Yield the rows of an encoder without its decoder: our whole model."""
    own = {path for row in family.rows for path in row.ours if path.startswith("encoder/")}
    for row in family.rows:
        if f"encoder/{row.ours[0]}" not in own:  # nor is it the decoder's
            ours = tuple(path.removeprefix("encoder/") for path in row.ours)
            yield row.theirs, row._replace(ours=ours), "", None
    for layer in range(config.layers):
        home, index = layer_path(config, layer)
        for row in family.encoder_rows:
            yield family.encoder.format(layer) + row.theirs, row, f"{home}/", index


def _theirs(
    row: Row, paths: list[str], at: tuple[int, ...], shapes, letters, config: ModelConfig
) -> Theirs:
    words = row.layout.replace("*", "").split(",")
    star = next((i for i, word in enumerate(row.layout.split(",")) if "*" in word), 0)
    before = row.layout.split(",")[star].partition("*")[0] if "*" in row.layout else ""
    parts = []
    for path in paths:
        axes, shape = letters[path][len(at) :], shapes[path][len(at) :]
        axes = f"{axes[:-1]}O" if axes[-2:] in ("DD", "PP") else axes
        size = dict(zip(axes, shape, strict=True)) | {ONE: 1}
        if "G" in row.layout and "N" in axes:  # queries, by the heads of the keys they share
            size |= {"K": config.K, "G": config.heads // config.K}
            axes = axes.replace("N", "KG")
        # Keys and values may have heads of their own number, under the same name in the layout.
        other = {"N": "K", "G": ONE}
        flat = [[c if c in size else other[c] for c in word] for word in words]
        whole = [math.prod(size[c] for c in word) for word in flat]
        groups = math.prod(size[c] for c in flat[star][: len(before)])
        kept = [c for word in flat for c in word if c != ONE]
        order = tuple(kept.index(c) for c in axes)
        parts.append((path, whole, groups, tuple(size[c] for c in kept), order, shape))
    # They follow one another in each group: in all of the axis, or in what is before the star.
    _, whole, groups, *_ = parts[0]
    total = sum(one[star] for _, one, *_ in parts)
    split = (*whole[:star], groups, total // groups, *whole[star + 1 :])
    links, start = [], 0
    for path, one, _, sizes, order, shape in parts:
        cut = [slice(None)] * len(split)
        cut[star + 1] = slice(start, start + one[star] // groups)
        start += one[star] // groups
        links.append(Link(path, at, split, tuple(cut), sizes, order, shape))
    return Theirs((*whole[:star], total, *whole[star + 1 :]), tuple(links))


def fill(theirs: Theirs, flat: Mapping[str, Any], dtype: np.dtype) -> np.ndarray:
    """Return a tensor of theirs made of our parameters, {path: array}."""
    tensor = np.empty(theirs.shape, dtype)
    for link in theirs.links:
        link.write(tensor, np.asarray(part_of(flat[link.path], link.at), dtype))
    return tensor


def part_of(ours: Any, at: tuple[int, ...]) -> Any:
    """Return a layer of a stacked parameter, or an expert of it; of arrays on a CPU a view."""

    def part(array: Any) -> Any:
        devices = getattr(array, "devices", set)()
        return (np.asarray(array) if all(one.platform == "cpu" for one in devices) else array)[at]

    return jax.tree.map(part, ours)
