"""The weights of a model that an adapter can stand beside."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.models import api, serving
from jaxgen.nn.stack import layer_path
from jaxgen.nn.weight import STACK_AXIS


class Site(NamedTuple):
    """A weight that can have an adapter.

    letters: without that of the stack; inner, outer: of the axes summed over and of the outputs;
    shape: by letter; layers: numbers of the layers that it belongs to, in the order of its stack;
    stack: the length of that, or nothing.
    """

    letters: str
    inner: str
    outer: str
    shape: tuple[int, ...]
    layers: tuple[int, ...]
    stack: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        """The numbers that an output is summed over."""
        return prod(self.shape[: len(self.inner)])

    def sizes(self, letters: str) -> tuple[int, ...]:
        """Return the lengths of some of the axes."""
        count = len(self.inner)
        both = {"i": self.shape[:count], "o": self.shape[count:]}
        return both["i"] if letters == self.inner else both["o"]


def sites(config: ModelConfig) -> dict[str, Site]:
    """Return all weights of a model that an adapter can stand beside, by path."""
    numbers: dict[str, list[int]] = {}
    towers = [("", config)]
    if config.topology == "encoder_decoder":
        towers.append(("encoder/", config.encoder()))
    if config.vision is not None:
        towers.append(("vision/", config.encoder()))
    for prefix, tower in towers:
        for layer in range(tower.layers):
            numbers.setdefault(f"{prefix}{layer_path(tower, layer)[0]}/", []).append(layer)
    letters, by_path = tree.flatten(api.axes(config)), {}
    for path, leaf in tree.flatten(api.abstract(config)).items():
        one = letters[path].removeprefix(STACK_AXIS)
        count = (serving.NUM_CONTRACTED | {"DD": 1}).get(one)
        if count is None:
            continue
        depth = len(letters[path]) - len(one)
        # The longest home that fits: "layers/1/" comes before "layers/".
        home = max((home for home in numbers if path.startswith(home)), key=len, default="")
        axes = "DF" if one == "DD" else one
        by_path[path] = Site(
            *(axes, axes[:count], axes[count:]),
            *(leaf.shape[depth:], tuple(numbers.get(home, ())), leaf.shape[:depth]),
        )
    return by_path
