"""Generation from token ids in one call, by strategies that do more than draw."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import at_least, between
from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain, chain, check_chain, greedy
from jaxgen.decoding.contrastive import contrastive_search
from jaxgen.decoding.history import required_history
from jaxgen.decoding.loop import Keys, decode
from jaxgen.decoding.per_request import Number
from jaxgen.decoding.speculate import Draft, Speculated, draft_model, lookup, speculate
from jaxgen.decoding.stop import StopStrings
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.models import api, serving
from jaxgen.ops.cache import Layout, Store
from jaxgen.ops.memory import Memory
from jaxgen.text import model_steps as steps
from jaxgen.text.generate import PROMPTED, check, new_cache, prefill

Lengths = Int[Array, "B"] | np.ndarray | None


@arguments.checked(**PROMPTED, draft_params=api.fits_draft, count=at_least(1))
@auto_inside("prompt")
def generate_speculative(
    params: api.Params,
    config: ModelConfig,
    draft_params: api.Params,
    draft_config: ModelConfig,
    prompt: api.Ids,
    key: Keys,
    *,
    length: int,
    count: int,
    sample: Chain | None = None,
    draft_sample: Chain | None = None,
    lengths: Lengths = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Speculated:
    """Return what `speculate` makes of prompts, with a smaller decoder that drafts `count` tokens.

    The text is distributed as `generate`'s, and with a greedy `sample` it is the same; jit it with
    both configs, length, count, layout and store static. draft_sample: the draft's chain; None
    takes the processors of `sample` that read logits alone. The rest is as in `generate`.
    Raises ConfigError for a draft of another vocabulary, or one that needs a memory.
    """
    check(draft_config, prompt.shape[1], length)
    if draft_config.V != config.V:
        raise ConfigError(
            f"the draft's vocab_size={draft_config.V} is not the model's vocab_size={config.V}; "
            f"both must speak of the same ids"
        )
    if draft_config.topology != "decoder":
        raise ConfigError(f"a draft of topology={draft_config.topology}; give a decoder")
    sample, known = greedy() if sample is None else sample, _known(prompt, lengths)
    if draft_sample is None:
        parts = (part for part in sample.processors if required_history(part) == "nothing")
        draft_sample = chain(*parts)
    capacity = prompt.shape[1] + length + count + 1
    draft_params = serving.unroll(draft_params, draft_config)
    cache = prefill(draft_params, draft_config, prompt, known, capacity)[1]
    draft = draft_model(steps.model_step(draft_params, draft_config), cache, draft_sample, count)
    given = {"stop": stop, "strings": strings, "memory": memory, "layout": layout, "store": store}
    return _speculated(params, config, prompt, key, length, draft, sample, known, **given)


@arguments.checked(**PROMPTED, count=at_least(1), width=at_least(1))
@auto_inside("prompt")
def generate_lookup(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    key: Keys,
    *,
    length: int,
    count: int,
    width: int = 2,
    sample: Chain | None = None,
    lengths: Lengths = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Speculated:
    """Return what `speculate` makes of prompts, with the text so far as the draft (`lookup`).

    The rest is as in `generate_speculative`.
    """
    sample, known = greedy() if sample is None else sample, _known(prompt, lengths)
    given = {"stop": stop, "strings": strings, "memory": memory, "layout": layout, "store": store}
    draft = lookup(count, width=width)
    return _speculated(params, config, prompt, key, length, draft, sample, known, **given)


def _speculated(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    key: Keys,
    length: int,
    draft: Draft,
    sample: Chain,
    known: Array,
    *,
    stop: Any,
    strings: StopStrings | None,
    **cache_of: Any,
) -> Speculated:
    check(config, prompt.shape[1], length)
    capacity = prompt.shape[1] + length + draft.count + 1
    # A ring must be able to take back every guess, and the token after them.
    slack = draft.count if cache_of["layout"] == "ring" else 0
    params = serving.unroll(params, config)
    first, cache = prefill(params, config, prompt, known, capacity, slack=slack, **cache_of)
    read = steps.MultiTokenStep(params, config)
    ends = {"stop": stop, "strings": strings, "prompt": jnp.asarray(prompt), "lengths": known}
    return speculate(read, cache, first, key, sample, length, draft, **ends)


@arguments.checked(**PROMPTED, count=at_least(1), penalty=between(0, 1))
@auto_inside("prompt")
def generate_contrastive(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    *,
    length: int,
    count: int,
    penalty: Number,
    sample: Chain | None = None,
    lengths: Lengths = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    store: Store = "plain",
) -> Int[Array, "B length"]:
    """Return `length` new tokens for each prompt by `contrastive_search`.

    jit it with config, length, count and store static; the rest is as in `generate`.
    """
    check(config, prompt.shape[1], length)
    params = serving.unroll(params, config)
    known, capacity = _known(prompt, lengths), prompt.shape[1] + length + 1
    cache = new_cache(params, config, prompt.shape[0], capacity, memory, store=store)
    read = api.hidden(params, config, prompt, cache=cache, memory=memory)
    assert read.cache is not None
    first = jnp.take_along_axis(jnp.asarray(prompt, jnp.int32), known[:, None] - 1, axis=1)[:, 0]
    return contrastive_search(
        steps.StepWithHidden(params, config),
        read.cache.rewind(known - 1),
        first,
        chain() if sample is None else sample,
        length,
        count=count,
        penalty=penalty,
        seen=read.state,
        seen_lengths=known - 1,
        stop=stop,
        strings=strings,
        prompt=prompt,
        lengths=known,
    )


@arguments.checked(**PROMPTED)
@auto_inside("prompt")
def generate_dola(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    key: Keys,
    *,
    length: int,
    layers: Literal["low", "high"] | tuple[int, ...],
    sample: Chain | None = None,
    lengths: Lengths = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Int[Array, "B length"]:
    """Return `length` new tokens for each prompt, from DoLa's logits (`layer_contrast`).

    layers: early layers to contrast with, by the number of layers below them (0 is the embedding),
      or the lower or upper half of them, as transformers chooses. jit it with config, length,
      layers, layout and store static; the rest is as in `generate`.
    Raises ConfigError for a layer that there is not.
    """
    sample = greedy() if sample is None else sample
    check(config, prompt.shape[1], length)
    check_chain(sample, length)
    chosen = steps.dola_layers(config, layers) if isinstance(layers, str) else layers
    wrong = [layer for layer in chosen if not 0 <= layer < config.layers]
    if wrong or not chosen:
        raise ConfigError(
            f"layers={layers} must be numbers from 0 to {config.layers - 1} of layers="
            f"{config.layers}"
        )
    params = serving.unroll(params, config)
    known = _known(prompt, lengths)
    capacity = prompt.shape[1] + length
    first, cache = prefill(params, config, prompt, known, capacity, layout=layout, store=store)
    step = steps.dola_step(params, config, chosen)
    ends = {"stop": stop, "strings": strings, "prompt": prompt, "lengths": known}
    return decode(step, cache, first, key, sample, length, **ends)[0]


def _known(prompt: api.Ids, lengths: Lengths) -> Array:
    if lengths is None:
        return jnp.full(prompt.shape[0], prompt.shape[1], jnp.int32)
    return jnp.asarray(lengths, jnp.int32)
