"""How the results of a model are spread on a mesh with Explicit axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxgen.mesh import rules
from jaxgen.mesh.explicit import F, as_given, auto_inside
from jaxgen.nn.transformer import Hidden
from jaxgen.ops import cache as caches
from jaxgen.ops.memory import Memory


def letters(out: Any, given: Mapping[str, Any]) -> Any:
    """Return the letters of a Memory, Hidden or Output; stacked taps begin with their layers."""
    words = jax.tree.map(lambda x: {3: "BT", 4: ".BT"}.get(x.ndim, "B"), out)
    if isinstance(out, Memory):
        return words._replace(segments="BT")
    if isinstance(out, Hidden):
        words = words._replace(
            table=jax.tree.map(lambda _: "V", out.table),
            router=jax.tree.map(lambda _: "", out.router),
        )
    elif out.logits is not None and out.logits.ndim == 3:
        words = words._replace(logits="BTV")
    cache = as_given(out.cache, given.get("cache"), caches.letters(out.cache))
    return words._replace(cache=cache)


by_tokens = auto_inside(("tokens", "inputs_embeds", "media"), letters)
of_cache = auto_inside(None, lambda cache, _: caches.letters(cache))


def stored(axes: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return the decorator of a function that makes parameters, of the axes of its `config`."""

    def divided(_: Any, given: Mapping[str, Any]) -> Any:
        return jax.tree.map(rules.divided, axes(given["config"]))

    return auto_inside(None, divided, table=rules.STORED)
