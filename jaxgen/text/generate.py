"""Generation from token ids with a Transformer: prefill, then the decoding loop."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import at_least, between, size, token_ids
from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain, check_chain, greedy
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.loop import Keys, decode
from jaxgen.decoding.stop import StopStrings
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.export import Size, surely
from jaxgen.mesh.explicit import auto_inside
from jaxgen.models import api, serving
from jaxgen.ops import cache as caches
from jaxgen.ops.cache import Cache, Layout, Store
from jaxgen.ops.memory import Memory
from jaxgen.text.model_steps import model_step

# What the arguments of every way to go on from prompts may hold, where their numbers are known.
PROMPTED = {
    "params": api.fits,
    "prompt": token_ids(real="lengths"),
    "length": at_least(1),
    "lengths": between(1, "T"),
    "stop": token_ids(also=(NO_TOKEN,)),
}


def new_cache(
    params: api.Params,
    config: ModelConfig,
    batch: Size,
    capacity: Size,
    memory: Memory | None,
    **about: Any,
) -> Cache:
    """Return an `api.empty_cache` in the form that these parameters read best."""
    slots = None if memory is None else memory.state.shape[1]
    unrolled = serving.is_unrolled(params)
    return api.empty_cache(config, batch, capacity, memory=slots, unrolled=unrolled, **about)


@arguments.checked(
    params=api.fits,
    prompt=token_ids(real="lengths"),
    lengths=between(1, "T"),
    capacity=size(1),
    slack=at_least(0),
)
@compile_once
@auto_inside("prompt", lambda out, _: ("B", caches.letters(out[1])))
def prefill(
    params: api.Params,
    config: ModelConfig,
    prompt: api.Ids,
    lengths: Int[Array | np.ndarray, "B"],
    capacity: Size,
    *,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
    slack: int = 0,
) -> tuple[Int[Array, "B"], Cache]:
    """Return (first, cache): all of each prompt but its last token cached, and that last token.

    The last token is left to the loop's first step, so that every token that is ever drawn comes
    from one and the same code; no logits are computed here. The rest is as in `api.empty_cache`.
    """
    lengths = jnp.asarray(lengths)
    about = {"layout": layout, "store": store, "slack": slack}
    cache = new_cache(params, config, prompt.shape[0], capacity, memory, **about)
    cache = cache.with_valid_lengths(jnp.asarray(lengths, jnp.int32) - 1)
    prefix = None
    if config.prompt == "both":
        prefix = (jnp.arange(prompt.shape[1]) < lengths[:, None]).astype(jnp.int32)
    cache = api.hidden(params, config, prompt, cache=cache, memory=memory, prefix=prefix).cache
    assert cache is not None
    prompt = jnp.asarray(prompt, jnp.int32)
    return jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0], cache


def check(config: ModelConfig, width: Size, length: int) -> None:
    """Raise ConfigError unless a model can go on from `width` tokens with `length` new ones."""
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
    lengths: Int[Array | np.ndarray, "B"] | None = None,
    stop: Int[Array | np.ndarray, "E"] | None = None,
    strings: StopStrings | None = None,
    memory: Memory | None = None,
    layout: Layout = "contiguous",
    store: Store = "plain",
) -> Int[Array, "B length"]:
    """Return `length` new token ids for each prompt.

    Static where it is jitted: config, length, layout and store.

    prompt: ids [B, T] of any integer type, or nested lists, rows padded on the right to one width;
      `lengths` says how much is real. Traced ids and lengths are trusted to be in range.
    sample: a `chain`; None takes the likeliest token.
    stop: ids that end a row, which then repeats its stop token. strings: `stop_strings` likewise.
    memory: what `encode` made of the sources, for an encoder-decoder, whose prompts begin with the
      token that its family starts decoding from.
    layout, store: of the key/value cache, see `models.api.empty_cache`.
    Raises ConfigError if T + length exceeds config.context, for an empty prompt or length, and for
    a model that gives no next token.
    """
    sample = greedy() if sample is None else sample
    check(config, prompt.shape[1], length)
    check_chain(sample, length)
    params = serving.unroll(params, config)
    if lengths is None:
        lengths = jnp.full(prompt.shape[0], prompt.shape[1], jnp.int32)
    capacity = prompt.shape[1] + length
    about = {"memory": memory, "layout": layout, "store": store}
    first, cache = prefill(params, config, prompt, lengths, capacity, **about)
    step = model_step(params, config)
    ends = {"stop": stop, "strings": strings, "prompt": prompt, "lengths": lengths}
    return decode(step, cache, first, key, sample, length, **ends)[0]
