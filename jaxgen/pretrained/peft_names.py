"""The weights of a model as PEFT knows them: modules of transformers, and what part is which."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from jaxgen.adapters.sites import Site, sites
from jaxgen.config import ModelConfig
from jaxgen.models.families.family import Family
from jaxgen.models.families.weights import Link, table

WEIGHT = ".weight"


class Part(NamedTuple):
    """One of our weights, or a layer of it, in a module: where its axes are among the module's.

    outputs, inputs: numbers of the module's rows, one for each number of our output and input axes.
    """

    path: str
    at: tuple[int, ...]
    site: Site
    outputs: np.ndarray
    inputs: np.ndarray


class Module(NamedTuple):
    """A linear module of theirs: its width and the parts that it is made of."""

    num_inputs: int
    num_outputs: int
    parts: tuple[Part, ...]


def modules(family: Family, config: ModelConfig) -> dict[str, Module]:
    """Return {name of theirs: Module} of all that an adapter of PEFT may stand beside."""
    known, found = sites(config), {}
    for name, theirs in table(family, config).items():
        linked = all(link.path in known for link in theirs.links)
        if len(theirs.shape) != 2 or not name.endswith(WEIGHT) or not linked:
            continue
        parts, rows_are_inputs = [], False
        for link in theirs.links:
            part, rows_are_inputs = _part(link, theirs.shape, known[link.path])
            parts.append(part)
        inputs, outputs = theirs.shape if rows_are_inputs else theirs.shape[::-1]
        found[name.removesuffix(WEIGHT)] = Module(inputs, outputs, tuple(parts))
    return found


def _part(link: Link, shape: tuple[int, ...], site: Site) -> tuple[Part, bool]:
    """Return the part of a link, and whether the tensor's rows are its inputs."""
    count = len(site.inner)
    rows, columns = (
        link.read(np.broadcast_to(np.arange(size)[(slice(None), *((None,) * (1 - axis)))], shape))
        for axis, size in enumerate(shape)
    )
    first_input, first_output = (0,) * count, (0,) * (rows.ndim - count)
    by_input = rows[(..., *first_output)], columns[(..., *first_output)]
    varied = [len(np.unique(numbers)) == numbers.size for numbers in by_input]
    is_input = varied[0] and (prod(by_input[0].shape) > 1 or shape[0] == 1)
    inputs = by_input[0] if is_input else by_input[1]
    outputs = (columns if is_input else rows)[first_input]
    return Part(link.path, link.at, site, outputs, inputs), is_input
