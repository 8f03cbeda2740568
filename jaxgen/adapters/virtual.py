"""Virtual tokens before those of a text: prompt tuning and prefix tuning.

A decoder sees them as keys and values of its layers. Those of prefix tuning are trained themselves
(Li and Liang 2021). Those of prompt tuning (Lester et al. 2021) are what the model makes of vectors
that are trained; causal layers see nothing of a text there, so they are computed once for all rows.
An encoder reads both sides, so it reads the vectors of a prompt as tokens; a prefix stands before
the keys of its layers too, and before those of the decoder where there are both.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import tree
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.models.inputs import cache_parts
from jaxgen.ops.contract import lookup

KINDS = ("prompt", "prefix")


def key_paths(config: ModelConfig, kind: str) -> tuple[str, ...]:
    """Return the paths of the weights that make the keys and values of a model's layers.

    Of an encoder-decoder these are the decoder's. Raises ConfigError that names what of the model
    has no place for virtual tokens.
    """
    if config.topology != "decoder" and kind == "prompt":
        raise ConfigError(
            f"adapter.kind=prompt needs topology=decoder, not {config.topology}, where tokens of a "
            f"row see virtual ones of another; give prefix, or lora"
        )
    known = sites(config)
    ends = ("attn/k", "attn/v")
    paths = tuple(p for p in known if p.endswith(ends) and not p.startswith("encoder/"))
    layers = {
        side: [n for p in paths if p.endswith(side) for n in known[p].layers] for side in "kv"
    }
    each, full = list(range(config.layers)), cache_parts(config, ring=False, unrolled=False).full
    odd = (
        "prompt=both sees a prompt from both sides" if config.prompt == "both"
        else "layers share weights" if config.weight_sets
        else "positions=disentangled multiplies distances with keys"
        if config.positions == "disentangled"
        else "not all layers keep keys and values of their own, of one size"
        if full != config.layers or any(sorted(layers[side]) != each for side in "kv")
        else None
    )  # fmt: skip
    if odd is not None:
        raise ConfigError(f"adapter.kind={kind}: {odd}, so virtual tokens have no place; give lora")
    return paths


def keys_of(
    params: Any, config: ModelConfig, vectors: Float[Array, "n D"], paths: tuple[str, ...]
) -> dict[str, Array]:
    """Return the keys and values [stack, n, K, H] that layers have of vectors, by path."""
    cache = api.empty_cache(config, 1, vectors.shape[0])
    cache = api.hidden(params, config, inputs_embeds=vectors[None], cache=cache).cache
    assert cache is not None
    full: Any = cache.full
    known, result = sites(config), {}
    for path in paths:
        rows = (full.k if path.endswith("k") else full.v)[jnp.asarray(known[path].layers), 0]
        rows = rows.swapaxes(1, 2)
        result[path] = rows if known[path].stack else rows[0]
    return result


def sample_vectors(params: Any, config: ModelConfig, count: int, key: PRNGKeyArray) -> Array:
    """Return the vectors [count, D] of tokens drawn from the vocabulary, to begin with."""
    ids = jax.random.choice(key, config.V, (count,), replace=count > config.V)
    return lookup(params["embed"]["tokens"], ids, dtype="float32")


def first(params: Any, config: ModelConfig, kind: str, count: int, key: PRNGKeyArray) -> tree.Tree:
    """Return the numbers that training begins with, as a tree of an adapter.

    A prefix of other models than decoders begins as PEFT's, normal with a deviation of 1.
    """
    vectors = sample_vectors(params, config, count, key)
    if kind == "prompt":
        return {"prompt": vectors}
    paths = key_paths(config, kind)
    if config.topology == "decoder":
        keys = keys_of(params, config, vectors, paths)
    else:
        known = sites(config)
        shapes = {p: (*known[p].stack, count, *known[p].sizes(known[p].outer)) for p in paths}
        drawn = zip(jax.random.split(key, len(paths)), shapes.items(), strict=True)
        keys = {path: jax.random.normal(one, shape) for one, (path, shape) in drawn}
    return tree.unflatten({f"{path}/virtual": x.astype("float32") for path, x in keys.items()})
