"""Generation from token ids with a Transformer: prefill, then the decoding loop."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Required, TypedDict, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import at_least, between, size, token_ids
from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain, check_chain, greedy
from jaxgen.decoding.detailed import Decoded, Scores, decode_detailed
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.loop import Count, Keys, Stops, decode
from jaxgen.decoding.stop import StopStrings
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.export import Size, surely
from jaxgen.mesh.explicit import auto_inside
from jaxgen.models import api, serving
from jaxgen.models.inputs import in_places
from jaxgen.ops import cache as caches
from jaxgen.ops.cache import Cache, Layout, Store
from jaxgen.ops.memory import Memory
from jaxgen.text.model_steps import dola_layers, dola_step, model_step

F = TypeVar("F", bound=Callable[..., Any])
Lengths = Int[Array | np.ndarray, "B"]

# What the arguments of every way to continue prompts may hold, where their numbers are known.
PROMPTED = {
    "params": api.fits,
    "prompt": token_ids(real="lengths"),
    "length": at_least(1),
    "lengths": between(1, "T"),
    "stop": token_ids(also=(NO_TOKEN,)),
}

# The same of their docstrings.
SHARED_ARGS = {
    "params": "parameters of the model, as `init` or `load` returns them.",
    "config": "config of the model. Static.",
    "prompt": "token ids [B, T], or nested lists, rows padded on the right.",
    "key": "a PRNG key for the batch, or one for each row [B]; neighbours change no row's draws.",
    "sample": "logits processors, as `chain` makes them; None takes the likeliest token.",
    "lengths": "number of real tokens in each row [B]; None: all T.",
    "stop": "token ids [E] that end a row, which then repeats its last token.",
    "strings": "`stop_strings` that end a row likewise.",
    "memory": "output of `encode`, for an encoder-decoder; prompts begin with its start token.",
    "layout": "of the KV cache: `contiguous`, or `ring` for layers with a window. Static.",
    "store": "of the KV cache: `plain`, or `int8`. Static.",
}


def with_shared_args(function: F) -> F:
    """Return the function with a docstring of all its arguments, in their order."""
    before, args, after = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")
    own, end, after = after.partition("\n\n")
    lines = {line.strip().partition(":")[0]: line for line in re.split(r"\n(?=  \w)", own)}
    lines = {name: f"  {name}: {text}" for name, text in SHARED_ARGS.items()} | lines
    listed = [lines[name] for name in inspect.signature(function).parameters if name in lines]
    function.__doc__ = before + args + "\n".join(listed) + end + after
    return function


class Ends(TypedDict, total=False):
    """Where texts begin and end: keyword arguments that every decoding loop takes."""

    prompt: Required[Any]
    lengths: Required[Any]
    stop: Stops | None
    strings: StopStrings | None
    limit: Count | None


class Prompts(NamedTuple):
    """Prompts as a caller gives them, where their texts end, and the cache that holds them.

    room: slots for new tokens, None: length; slack: see `prefill`.
    """

    prompt: api.Ids
    length: int
    lengths: Lengths | None
    stop: Stops | None
    strings: StopStrings | None
    memory: Memory | None = None
    layout: Layout = "contiguous"
    store: Store = "plain"
    room: Size | None = None
    slack: int = 0


class Prefilled(NamedTuple):
    """Prompts that a model has read, and its parameters as decoding reads them."""

    params: api.Params
    first: Int[Array, "B"]
    cache: Cache
    ends: Ends


def new_cache(
    params: api.Params,
    config: ModelConfig,
    batch: Size,
    capacity: Size,
    memory: Memory | None,
    **form: Any,
) -> Cache:
    """Return an `api.empty_cache` in the form that these parameters read best."""
    slots, unrolled = None if memory is None else memory.state.shape[1], serving.is_unrolled(params)
    return api.empty_cache(config, batch, capacity, memory=slots, unrolled=unrolled, **form)


@with_shared_args
@arguments.checked(
    params=api.fits,
    prompt=token_ids(real="lengths"),
    lengths=between(1, "T"),
    capacity=size(1),
    slack=at_least(0),
    media=in_places,
)
@compile_once
@auto_inside("prompt", lambda out, _: ("B", caches.letters(out[1])))
def prefill(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    lengths: Lengths,
    capacity: Size,
    *,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
    slack: int = 0,
    media: api.Media | None = None,
) -> tuple[Int[Array, "B"], Cache]:
    """Read prompts into a new cache: all of their tokens but the last, which `decode` begins with.

    The last token is left to the loop's first step, so that one and the same code computes the
    logits of every new token; none are computed here.

    Args:
      lengths: number of real tokens in each row [B], at least 1.
      capacity: slots of the cache: prompt and new tokens together. Static.
      slack: tokens that a ring can be rewound by, for speculation. Static.
      media: images of a decoder with vision, as of `apply`. The last token is none of their places.

    Returns:
      (first, cache): the last token of each prompt [B], and the cache of those before it.

    Raises:
      ConfigError: for ids outside the vocabulary, lengths that are none, or a cache that the
        config does not allow.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=8, layers=1, d_model=8, heads=2)
      >>> params = jaxgen.init(config, jax.random.key(0))
      >>> prompt, lengths = jnp.array([[1, 2, 3], [4, 0, 0]]), jnp.array([3, 1])
      >>> first, cache = jaxgen.prefill(params, config, prompt, lengths, 8)
      >>> first.tolist()
      [3, 4]
    """
    lengths = jnp.asarray(lengths)
    form = {"layout": layout, "store": store, "slack": slack}
    cache = new_cache(params, config, prompt.shape[0], capacity, memory, **form)
    cache = cache.with_valid_lengths(jnp.asarray(lengths, jnp.int32) - 1)
    prefix = None
    if config.prompt == "both":
        prefix = (jnp.arange(prompt.shape[1]) < lengths[:, None]).astype(jnp.int32)
    seen = {"memory": memory, "prefix": prefix, "media": media}
    cache = api.hidden(params, config, prompt, cache=cache, **seen).cache
    assert cache is not None
    prompt = jnp.asarray(prompt, jnp.int32)
    return jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0], cache


def check(config: ModelConfig, width: Size, length: int) -> None:
    """Raise ConfigError unless a model can continue `width` tokens with `length` new ones."""
    if surely(lambda: width < 1) or length < 1:
        raise ConfigError(f"prompt of {width} and length={length} tokens: both must be at least 1")
    room = config.longest - width
    if surely(lambda: length > room):
        remedy = f" or ask for at most {room}" if surely(lambda: room > 0) else ""
        raise ConfigError(
            f"prompt of {width} + length={length} new tokens exceed context={config.context}; "
            f"shorten the prompt{remedy}"
        )
    if config.head != "lm":
        raise ConfigError(f"head={config.head} gives no next token; generation needs head=lm")


def read_prompts(params: api.Params, config: ModelConfig, given: Prompts) -> Prefilled:
    """Check and read the prompts of a public function.

    Raises ConfigError if T + length exceeds the context, or the model gives no next token.
    """
    width = given.prompt.shape[1]
    check(config, width, given.length)
    params, num_valid = serving.unroll(params, config), lengths_of(given.prompt, given.lengths)
    capacity = width + (given.length if given.room is None else given.room)
    form = {"layout": given.layout, "store": given.store, "slack": given.slack}
    read = (params, config, given.prompt, num_valid, capacity)
    first, cache = prefill(*read, memory=given.memory, **form)
    prompt, about = jnp.asarray(given.prompt), {"stop": given.stop, "strings": given.strings}
    return Prefilled(params, first, cache, Ends(prompt=prompt, lengths=num_valid, **about))


def lengths_of(prompt: api.Ids, lengths: Lengths | None) -> Int[Array, "B"]:
    """Return the lengths of prompts; None: all of them are as wide as the array."""
    if lengths is None:
        return jnp.full(prompt.shape[0], prompt.shape[1], jnp.int32)
    return jnp.asarray(lengths, jnp.int32)


@with_shared_args
@arguments.checked(**PROMPTED)
@auto_inside("prompt")
def generate(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    key: Keys,
    *,
    length: int,
    sample: Chain | None = None,
    lengths: Lengths | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Int[Array, "B length"]:
    """Continue prompts by `length` tokens each, sampled one after the other.

    Works as it is, and under `jax.jit` with the arguments marked static in `static_argnames`.

    Args:
      length: number of new tokens, at least 1. Static.

    Returns:
      The new token ids [B, length]. `generate_detailed` returns their log-probabilities as well.

    Raises:
      ConfigError: if T + length exceeds the context, an argument is out of range, or the model
        gives no next token.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=8, layers=1, d_model=8, heads=2)
      >>> params, key = jaxgen.init(config, jax.random.key(0)), jax.random.key(1)
      >>> sample = jaxgen.chain(jaxgen.temperature(0.7), jaxgen.top_p(0.9))
      >>> jaxgen.generate(params, config, [[1, 2, 3]], key, length=5, sample=sample).shape
      (1, 5)
    """
    sample = greedy() if sample is None else sample
    check_chain(sample, length)
    given = Prompts(prompt, length, lengths, stop, strings, memory, layout, store)
    begun = read_prompts(params, config, given)
    step = model_step(begun.params, config)
    return decode(step, begun.cache, begun.first, key, sample, length, **begun.ends)[0]


@with_shared_args
@arguments.checked(**PROMPTED, top=at_least(0))
@auto_inside("prompt")
def generate_detailed(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    key: Keys,
    *,
    length: int,
    top: int = 0,
    scores: Scores = "model",
    sample: Chain | None = None,
    lengths: Lengths | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Decoded:
    """Continue prompts as `generate` does, with the log-probability of each new token.

    Args:
      length: number of new tokens, at least 1. Static.
      top: number of likeliest alternatives to return for each token, 0 or more. Static.
      scores: "model": log-probabilities of the model; "chain": after the logits processors. Static.

    Returns:
      A `Decoded`: tokens [B, length], num_generated [B], reason [B], logprobs [B, length] in nats,
      top_ids and top_logprobs [B, length, top]; zeros and -1 past the end of a row. Forward mode
      goes through them; for a gradient, take the log-probabilities of the tokens from `apply`.

    Raises:
      ConfigError: as `generate` does.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=8, layers=1, d_model=8, heads=2)
      >>> params, key = jaxgen.init(config, jax.random.key(0)), jax.random.key(1)
      >>> out = jaxgen.generate_detailed(params, config, [[1, 2, 3]], key, length=5, top=2)
      >>> out.tokens.shape, out.logprobs.shape, out.top_ids.shape
      ((1, 5), (1, 5), (1, 5, 2))
      >>> bool((out.logprobs <= 0).all())
      True
    """
    sample = greedy() if sample is None else sample
    check_chain(sample, length)
    given = Prompts(prompt, length, lengths, stop, strings, memory, layout, store)
    begun = read_prompts(params, config, given)
    step, loop = model_step(begun.params, config), (begun.cache, begun.first, key, sample, length)
    return decode_detailed(step, *loop, top=top, scores=scores, **begun.ends).without_cache()


@with_shared_args
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
    lengths: Lengths | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Decoded:
    """Continue prompts by DoLa (Chuang et al. 2024): late layers contrasted with early ones.

    Args:
      length: number of new tokens, at least 1. Static.
      layers: early layers to contrast with, by the number of layers below them (0 is the
        embedding), or "low" or "high": the lower or upper half, as transformers chooses. Static.

    Returns:
      A `Decoded`: tokens [B, length], num_generated [B], reason [B], logprobs [B, length] of the
      contrasted distribution.

    Raises:
      ConfigError: for a layer that the model does not have, and as `generate`.

    Example:
      >>> import jax, jaxgen
      >>> config = jaxgen.ModelConfig(vocab_size=11, context=16, layers=4, d_model=8, heads=2)
      >>> params, key = jaxgen.init(config, jax.random.key(0)), jax.random.key(1)
      >>> found = jaxgen.generate_dola(params, config, [[1, 2]], key, length=6, layers="low")
      >>> found.tokens.shape, found.num_generated.tolist()
      ((1, 6), [6])
    """
    sample = greedy() if sample is None else sample
    check_chain(sample, length)
    chosen = dola_layers(config, layers) if isinstance(layers, str) else layers
    wrong = [layer for layer in chosen if not 0 <= layer < config.layers]
    if wrong or not chosen:
        raise ConfigError(
            f"layers={layers} must be numbers from 0 to {config.layers - 1} of layers="
            f"{config.layers}"
        )
    given = Prompts(prompt, length, lengths, stop, strings, None, layout, store)
    begun = read_prompts(params, config, given)
    step, loop = dola_step(begun.params, config, chosen), (begun.cache, begun.first)
    return decode_detailed(step, *loop, key, sample, length, top=0, **begun.ends).without_cache()
