"""The model beneath an adapter: its numbers, quantised or not, and what it is known by."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import tree
from jaxgen.adapters.adapter import Adapter, Params
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.ops.int4 import Int4
from jaxgen.ops.int8 import Int8

QUANTISED: dict[str, Any] = {"int8": Int8, "int4": Int4}
SAMPLED = 4096  # numbers of each parameter that a fingerprint reads, at most


def quantise(params: Params, config: ModelConfig, base: str) -> Params:
    """Return the parameters with the matrices of layers quantised; the rest stays.

    base: a key of `QUANTISED`, or "plain", which changes nothing.
    """
    if base == "plain":
        return params
    flat = tree.flatten(params)
    for path, site in sites(config).items():
        if site.layers and not hasattr(flat[path], "contract"):
            form = partial(QUANTISED[base].of, num_contracted=len(site.inner))
            form = partial(jax.lax.map, form) if site.stack else form
            flat[path] = jax.jit(form)(flat[path])
    return tree.unflatten(flat)


def fingerprint(params: Params) -> dict[str, str]:
    """Return a short hash of each parameter: of its shape and up to 4,096 numbers, evenly spread.

    They are rounded to bfloat16 first, so that a base in another type is the same base. Quantised
    leaves have none.
    """
    hashes = {}
    for path, leaf in tree.flatten(params).items():
        if not hasattr(leaf, "shape"):
            continue
        flat = leaf.reshape(-1)
        some = np.asarray(flat[:: max(flat.size // SAMPLED, 1)]).astype(jnp.bfloat16)
        about = f"{list(leaf.shape)}".encode() + np.ascontiguousarray(some).tobytes()
        hashes[path] = sha256(about).hexdigest()[:16]
    return hashes


def check_base(adapter: Adapter, params: Params, name: str) -> None:
    """Raise CheckpointError if the parameters are not those that an adapter was trained beside."""
    if not adapter.digest:
        return
    own = fingerprint(params)
    for path, known in adapter.digest.items():
        if path not in adapter.saved and own.get(path, known) != known:
            base = f" ({adapter.base})" if adapter.base else ""
            raise CheckpointError(
                f"{name} is an adapter of another base{base}: {path} has other numbers there; give "
                f"the model that it was trained with"
            )
