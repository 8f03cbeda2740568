"""Generation from token ids by beams, contrast or speculation, each in one call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import at_least, between
from jaxgen.config import ModelConfig
from jaxgen.decoding.beam.constraints import Words
from jaxgen.decoding.beam.search import beam_search
from jaxgen.decoding.beam.settings import Search
from jaxgen.decoding.chain import Chain, chain, greedy
from jaxgen.decoding.contrastive import contrastive_search
from jaxgen.decoding.detailed import Decoded
from jaxgen.decoding.drafts import Draft, draft_model, lookup
from jaxgen.decoding.history import required_history
from jaxgen.decoding.loop import Keys
from jaxgen.decoding.per_request import Number
from jaxgen.decoding.speculate import speculate
from jaxgen.decoding.stop import StopStrings
from jaxgen.errors import ConfigError
from jaxgen.mesh.explicit import auto_inside
from jaxgen.models import api, serving
from jaxgen.ops.cache import Cache, Layout, Store
from jaxgen.ops.memory import Memory
from jaxgen.text import model_steps as steps
from jaxgen.text.generate import (
    PROMPTED,
    Ends,
    Lengths,
    Prompts,
    check,
    lengths_of,
    new_cache,
    prefill,
    read_prompts,
    with_shared_args,
)

# Up to so many beams keep their keys side by side, and a mask hides those of the others. More of
# them would multiply with so many hidden keys that each had better copy its own.
SPLIT = 16


@with_shared_args
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
    lengths: Lengths | None = None,
    words: Words | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Decoded:
    """Find the best continuations of prompts by beam search; each prompt is read once.

    Args:
      search: settings of the search, as `beams` makes them.
      length: number of new tokens at most, at least 1. Static.
      key: a PRNG key, or one for each row [B]; only `do_sample=True` reads it.
      sample: processors that change the log-probabilities of each step; None changes nothing.
      num_return: texts to return of each prompt, at most as many as beams. Static.
      words: `must_appear`: what every text has to contain.

    Returns:
      A `Decoded`, the best text of each prompt first: tokens [B, num_return, length],
      num_generated, reason and scores [B, num_return], logprobs [B, num_return, length].

    Raises:
      ConfigError: for more beams than the vocabulary has tokens, a missing key, and as `generate`.

    Example:
      >>> import jax, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=8, layers=1, d_model=8, heads=2)
      >>> params, search = jaxgen.init(config, jax.random.key(0)), jaxgen.beams(3)
      >>> found = jaxgen.generate_beams(params, config, [[1, 2]], search, length=4, num_return=2)
      >>> found.tokens.shape, bool(found.scores[0, 0] >= found.scores[0, 1])
      ((1, 2, 4), True)
    """
    if search.beams > config.V:
        raise ConfigError(f"beams={search.beams} exceed vocab_size={config.V}; ask for fewer")
    given = Prompts(prompt, length, lengths, stop, strings, memory, layout, store)
    begun = read_prompts(params, config, given._replace(room=split_room(search, length)))
    step, cache = steps.model_step(begun.params, config), split(begun.cache, search)
    loop = (begun.first, key, chain() if sample is None else sample, length, search)
    return beam_search(step, cache, *loop, num_return=num_return, words=words, **begun.ends)


def split_room(search: Search, length: int) -> int:
    """Return the slots of a row that `length` new tokens of all beams take in a `split` cache."""
    return length * (search.beams if search.beams <= SPLIT else 1)


def split(cache: Any, search: Search) -> Any:
    """Return a cache, or a tree of them, in the form that a search reorders at the least cost."""
    if search.beams > SPLIT:
        return cache

    def one(node):
        return node.branch() if isinstance(node, Cache) and node.can_branch else node

    return jax.tree.map(one, cache, is_leaf=lambda node: isinstance(node, Cache))


@with_shared_args
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
    lengths: Lengths | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Decoded:
    """Continue prompts faster: a smaller decoder drafts tokens, the model reads them in one step.

    Texts are distributed as those of `generate`, and with a greedy `sample` they are the same.
    Args:
      draft_params: parameters of the draft.
      draft_config: config of the draft, a decoder with the model's vocabulary. Static.
      length: number of new tokens at most, at least 1. Static.
      count: number of tokens to draft at once, at least 1. Static.
      draft_sample: those of the draft; None takes the ones of `sample` that read logits alone.

    Returns:
      A `Decoded`: tokens [B, length], num_generated, reason, guessed and accepted [B], logprobs
      [B, length], and steps, the number of calls of the model.

    Raises:
      ConfigError: for a draft that is no decoder or has another vocabulary, and as `generate`.

    Example:
      >>> import jax, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=16, layers=2, d_model=8, heads=2)
      >>> small = config.replace(layers=1)
      >>> key = jax.random.key(0)
      >>> params, draft = jaxgen.init(config, key), jaxgen.init(small, key)
      >>> found = jaxgen.generate_speculative(
      ...     params, config, draft, small, [[1, 2]], key, length=6, count=2)
      >>> plain = jaxgen.generate(params, config, [[1, 2]], key, length=6)
      >>> bool((found.tokens == plain).all())
      True
    """
    check(draft_config, prompt.shape[1], length)
    _check_draft(draft_config, config)
    sample = greedy() if sample is None else sample
    draft_sample = without_history(sample) if draft_sample is None else draft_sample
    capacity, num_valid = prompt.shape[1] + length + count + 1, lengths_of(prompt, lengths)
    read = (draft_params, draft_config, prompt, num_valid, capacity)
    draft = draft_of(*read, draft_sample, count)
    given = Prompts(prompt, length, lengths, stop, strings, memory, layout, store)
    return _speculate(params, config, given, key, sample, draft)


@with_shared_args
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
    lengths: Lengths | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Decoded:
    """Continue prompts faster where they repeat themselves: the text so far is the draft.

    Prompt lookup decoding (Saxena 2023). Texts are distributed as those of `generate`.

    Args:
      length: number of new tokens at most, at least 1. Static.
      count: number of tokens to copy at once, at least 1. Static.
      width: number of last tokens to look for in the text, or fewer. Static.

    Returns:
      A `Decoded`, as of `generate_speculative`.

    Raises:
      ConfigError: as `generate` does.

    Example:
      >>> import jax, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=16, layers=1, d_model=8, heads=2)
      >>> params, key = jaxgen.init(config, jax.random.key(0)), jax.random.key(1)
      >>> found = jaxgen.generate_lookup(params, config, [[1, 2, 1]], key, length=6, count=2)
      >>> bool((found.tokens == jaxgen.generate(params, config, [[1, 2, 1]], key, length=6)).all())
      True
    """
    sample, draft = greedy() if sample is None else sample, lookup(count, width=width)
    given = Prompts(prompt, length, lengths, stop, strings, memory, layout, store)
    return _speculate(params, config, given, key, sample, draft)


def _speculate(
    params: api.Params, config: ModelConfig, given: Prompts, key: Keys, sample: Chain, draft: Draft
) -> Decoded:
    # A ring must be able to take back every guess, and the token after them.
    slack, room = draft.count if given.layout == "ring" else 0, given.length + draft.count + 1
    begun = read_prompts(params, config, given._replace(room=room, slack=slack))
    loop = (begun.cache, begun.first, key, sample, given.length, draft)
    return speculate(steps.MultiTokenStep(begun.params, config), *loop, **begun.ends)


def _check_draft(draft: ModelConfig, config: ModelConfig) -> None:
    if draft.V != config.V:
        raise ConfigError(
            f"the draft's vocab_size={draft.V} is not the model's vocab_size={config.V}; "
            f"both must speak of the same ids"
        )
    if draft.topology != "decoder":
        raise ConfigError(f"a draft of topology={draft.topology}; give a decoder")


def draft_of(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    lengths: Lengths,
    capacity: int,
    sample: Chain,
    count: int,
    *,
    known: int | None = None,
    memory: Memory | None = None,
) -> Draft:
    """Return the draft of a model that has read the prompts."""
    params = serving.unroll(params, config)
    _, cache = prefill(params, config, prompt, lengths, capacity, memory=memory)
    return draft_model(steps.model_step(params, config, known), cache, sample, count)


def without_history(sample: Chain) -> Chain:
    """Return the processors of a chain that read logits alone, as a draft's must."""
    return chain(*(part for part in sample.processors if required_history(part) == "nothing"))


@with_shared_args
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
    lengths: Lengths | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    store: Store = "plain",
) -> Decoded:
    """Continue prompts by contrastive search (Su et al. 2022), which draws nothing.

    Args:
      length: number of new tokens, at least 1. Static.
      count: number of likeliest tokens to choose from, at least 1. Static.
      penalty: weight from 0 to 1, a number or [B], of a candidate's likeness to earlier tokens
        against its probability; 0 is greedy decoding.
      sample: logits processors before the choice; None changes nothing.

    Returns:
      A `Decoded`: tokens [B, length], num_generated [B], reason [B], logprobs [B, length].

    Raises:
      ConfigError: as `generate` does.

    Example:
      >>> import jax, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=16, layers=1, d_model=8, heads=2)
      >>> params = jaxgen.init(config, jax.random.key(0))
      >>> found = jaxgen.generate_contrastive(
      ...     params, config, [[1, 2]], length=6, count=4, penalty=0.6)
      >>> found.tokens.shape
      (1, 6)
    """
    check(config, prompt.shape[1], length)
    num_valid = lengths_of(prompt, lengths)
    ends = Ends(prompt=jnp.asarray(prompt), lengths=num_valid, stop=stop, strings=strings)
    sample = chain() if sample is None else sample
    rest = (sample, length, count, penalty)
    return search_contrastive(params, config, ends, *rest, memory=memory, store=store)


def search_contrastive(
    params: api.Params,
    config: ModelConfig,
    ends: Ends,
    sample: Chain,
    length: int,
    count: int,
    penalty: Number,
    *,
    known: int | None = None,
    memory: Memory | None = None,
    media: api.Media | None = None,
    store: Store = "plain",
) -> Decoded:
    """Read prompts with their hidden states and continue them; known: ids of the tokenizer."""
    params = serving.unroll(params, config)
    prompt, lengths = ends["prompt"], jnp.asarray(ends["lengths"])
    capacity = prompt.shape[1] + length + 1
    cache = new_cache(params, config, prompt.shape[0], capacity, memory, store=store)
    read = api.hidden(params, config, prompt, cache=cache, memory=memory, media=media)
    assert read.cache is not None
    prompt = jnp.asarray(prompt, jnp.int32)
    first = jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0]
    return contrastive_search(
        *(steps.StepWithHidden(params, config, known), read.cache.rewind(lengths - 1)),
        *(first, sample, length),
        count=count,
        penalty=penalty,
        prompt_hidden=read.state,
        prompt_hidden_lengths=lengths - 1,
        **ends,
    )
