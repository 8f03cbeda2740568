"""Beam search from token ids with a Transformer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.config import ModelConfig
from jaxgen.decoding.beam.constraints import Words
from jaxgen.decoding.beam.search import BeamResult, beam_search
from jaxgen.decoding.beam.settings import Search
from jaxgen.decoding.chain import Chain, chain
from jaxgen.decoding.loop import Keys
from jaxgen.decoding.stop import StopStrings
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.models import api, serving
from jaxgen.ops.cache import Cache, Layout, Store
from jaxgen.ops.memory import Memory
from jaxgen.text.generate import PROMPTED, check, prefill
from jaxgen.text.model_steps import model_step

# Up to so many beams keep their keys side by side, and a mask hides those of the others. More of
# them would multiply with so many hidden keys that each had better copy its own.
SPLIT = 16


def room(search: Search, length: int) -> int:
    """Return the slots of a row that `length` new tokens of all beams take in a `split` cache."""
    return length * (search.beams if search.beams <= SPLIT else 1)


def split(cache: Any, search: Search) -> Any:
    """Return a cache, or a tree of them, in the form that a search reorders at the least cost."""
    if search.beams > SPLIT:
        return cache

    def one(node):
        return node.branch() if isinstance(node, Cache) and node.sliding is None else node

    return jax.tree.map(one, cache, is_leaf=lambda node: isinstance(node, Cache))


@arguments.checked(**PROMPTED, num_return=at_least(1))
@auto_inside("prompt")
def generate_beams(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    search: Search,
    *,
    length: int,
    key: Keys | None = None,
    sample: Chain | None = None,
    num_return: int = 1,
    lengths: Int[Array | np.ndarray, "B"] | None = None,
    words: Words | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> BeamResult:
    """Return the best texts of up to `length` new tokens for each prompt, by `beams`.

    Each prompt is read once, however many beams there are. sample: a `chain` whose processors
    change the log-probabilities; None changes nothing. The rest is as in `generate` and
    `beam_search`. Static where it is jitted: config, length, num_return, layout and store.
    Raises ConfigError for more beams than the vocabulary has tokens, and what those raise.
    """
    check(config, prompt.shape[1], length)
    if search.beams > config.V:
        raise ConfigError(f"beams={search.beams} exceed vocab_size={config.V}; ask for fewer")
    if lengths is None:
        lengths = jnp.full(prompt.shape[0], prompt.shape[1], jnp.int32)
    params = serving.unroll(params, config)
    capacity = prompt.shape[1] + room(search, length)
    about = {"memory": memory, "layout": layout, "store": store}
    first, cache = prefill(params, config, prompt, lengths, capacity, **about)
    return beam_search(
        model_step(params, config),
        split(cache, search),
        first,
        key,
        chain() if sample is None else sample,
        length,
        search,
        num_return=num_return,
        words=words,
        stop=stop,
        strings=strings,
        prompt=prompt,
        lengths=lengths,
    )
