"""An adapter as a plain tree of arrays, and the parameters of a model with it around its weights.

Its tree has the paths of the weights, with the arrays of each below: "layers/attn/q/a" and "b" of a
low rank, "magnitude" of DoRA, "gain" and "before" of IA3. A parameter that is trained whole has the
path that it has in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jaxgen import tree
from jaxgen.adapters import virtual
from jaxgen.adapters.settings import ALL_LINEAR, AdapterSettings
from jaxgen.adapters.sites import Site, sites
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError, nearest
from jaxgen.models import api
from jaxgen.ops.adapted import RANK, Adapted, VirtualTokens, num_virtual
from jaxgen.ops.contract import contract

Params = dict[str, Any]
PARTS = ("a", "b", "magnitude", "gain", "before")


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model.

    Attributes:
        kind: lora (of any scaling), dora, ia3, prompt or prefix.
        params: its tree; None where only its form is known.
        ranks: by path of a weight with a low rank: of each layer of its stack, 0 for a layer that
            has none, or a single number.
        alphas: likewise.
        scaling: whether a product is scaled by alpha / rank, or by alpha / root of the rank.
        inputs: ia3: paths whose inputs are scaled.
        saved: paths of parameters that it holds whole.
        dropout: of training.
        num_virtual: prompt, prefix: tokens before those of the text.
        base: what its model was called; digest: its `fingerprint`.
    """

    kind: str
    params: Params | None = None
    ranks: Mapping[str, np.ndarray] = field(default_factory=dict)
    alphas: Mapping[str, np.ndarray] = field(default_factory=dict)
    scaling: str = "rank"
    targets: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    dropout: float = 0.0
    num_virtual: int = 0
    base: str | None = None
    digest: Mapping[str, str] | None = None

    def scale(self, path: str) -> np.ndarray:
        """Return the factor of the product of a weight's low rank, for each layer."""
        ranks = np.maximum(self.ranks[path], 1)
        below = ranks if self.scaling == "rank" else np.sqrt(ranks)
        return np.asarray(self.alphas[path] / below, np.float32)


def plan(settings: AdapterSettings, config: ModelConfig) -> Adapter:
    """Return the form of the adapter that the settings describe, without its numbers.

    Raises ConfigError for a target that matches no weight, and for one that can have no adapter.
    """
    if settings.kind in virtual.KINDS:
        paths = virtual.key_paths(config, settings.kind)
        return Adapter(
            settings.kind,
            targets=paths if settings.kind == "prefix" else (),
            num_virtual=settings.tokens,
        )
    known, every = sites(config), tree.flatten(api.axes(config))
    targets = _targets(settings, known, every)
    saved = _saved(settings, targets, known, every)
    if settings.kind == "ia3":
        inputs = tuple(path for path in targets if tree.match(path, settings.inputs))
        return Adapter("ia3", targets=targets, inputs=inputs, saved=saved)
    for name in ("rank_pattern", "alpha_pattern"):
        tree.check_patterns(f"adapter.{name}", getattr(settings, name), dict.fromkeys(targets))
    ranks, alphas = {}, {}
    for path in targets:
        on = _chosen(settings, known[path])
        ranks[path] = on * _by_pattern(path, settings.rank_pattern, settings.rank)
        alphas[path] = on * float(_by_pattern(path, settings.alpha_pattern, settings.alpha))
    return Adapter(
        "dora" if settings.kind == "dora" else "lora",
        ranks=ranks,
        alphas=alphas,
        scaling="root" if settings.kind == "rslora" else "rank",
        targets=targets,
        saved=saved,
        dropout=settings.dropout,
    )


def _targets(settings: AdapterSettings, known: Mapping[str, Site], every: Any) -> tuple[str, ...]:
    found: set[str] = set()
    for pattern in settings.targets:
        if pattern == ALL_LINEAR:
            matched = {path for path, site in known.items() if site.layers}
        else:
            matched = {path for path in known if tree.match(path, (pattern,))}
        if not matched:
            others = [path for path in every if tree.match(path, (pattern,))]
            if not others:
                tree.check_patterns("adapter.targets", (pattern,), known)
            other = others[0]
            raise ConfigError(
                f"adapter.targets={pattern!r} is {other}, no matrix that an adapter stands beside"
                f"{nearest(other, known)}; to train it whole: adapter.save=[{other!r}]"
            )
        found |= matched
    if settings.layers is not None:
        numbers = {number for path in found for number in known[path].layers}
        if wrong := [number for number in settings.layers if number not in numbers]:
            raise ConfigError(
                f"adapter.layers={wrong[0]} is no layer of the targets; they have "
                f"{min(numbers, default=0)} to {max(numbers, default=0)}"
            )
        found = {path for path in found if _chosen(settings, known[path]).any()}
    if not found:
        raise ConfigError("adapter.targets and adapter.layers leave no weight; give others")
    return tuple(path for path in every if path in found)


def _chosen(settings: AdapterSettings, site: Site) -> np.ndarray:
    """Return 1 for each part of a stack that gets an adapter, one of its layers being chosen."""
    on = [settings.layers is None or number in settings.layers for number in site.layers or (-1,)]
    return np.reshape(np.asarray(on, np.int64), (*site.stack, -1)).max(-1)


def _by_pattern(path: str, patterns: Mapping[str, Any], default: Any) -> Any:
    return next((value for glob, value in patterns.items() if tree.match(path, (glob,))), default)


def _saved(settings: AdapterSettings, targets: Any, known: Any, every: Any) -> tuple[str, ...]:
    tree.check_patterns("adapter.save", settings.save, every)
    found = {path for path in every if tree.match(path, settings.save)}
    if twice := sorted(found & set(targets)):
        raise ConfigError(
            f"{twice[0]} is in adapter.targets and in adapter.save; leave it out of one"
        )
    if settings.bias == "all":
        found |= {path for path in every if path.endswith("bias")}
    elif settings.bias == "targets":
        found |= {f"{path}_bias" for path in targets if f"{path}_bias" in every}
    return tuple(path for path in every if path in found)


def axes(adapter: Adapter, config: ModelConfig) -> Params:
    """Return the letters of each array of an adapter's tree, and nothing else."""
    return tree.map_paths(lambda _, pair: pair[0], _forms(adapter, config))


def abstract(adapter: Adapter, config: ModelConfig) -> Params:
    """Return the tree of an adapter as ShapeDtypeStructs."""
    return tree.map_paths(
        lambda _, pair: jax.ShapeDtypeStruct(pair[1], pair[2]), _forms(adapter, config)
    )


def _forms(adapter: Adapter, config: ModelConfig) -> Params:
    """Return (letters, shape, dtype) of each array of an adapter's tree."""
    known, flat = sites(config), {}
    if adapter.kind == "prompt":
        width = config.towers.encoder_d_model or config.embed_width  # an encoder's, if there is one
        return {"prompt": (RANK + "D", (adapter.num_virtual, width), "float32")}
    for path in adapter.targets:
        site, stack = known[path], "L" * len(known[path].stack)
        inner, outer = site.sizes(site.inner), site.sizes(site.outer)
        parts = {"virtual": True}
        if adapter.kind == "ia3":
            parts = {"before" if path in adapter.inputs else "gain": True}
        elif path in adapter.ranks:
            parts = {"a": True, "b": True, "magnitude": adapter.kind == "dora"}
        rank = int(np.max(adapter.ranks.get(path, 0)))
        shapes = {
            "a": (site.inner + RANK, (*inner, rank)),
            "b": (RANK + site.outer, (rank, *outer)),
            "magnitude": (site.outer, outer),
            "gain": (site.outer, outer),
            "before": (site.inner, inner),
            "virtual": (RANK + site.outer, (adapter.num_virtual, *outer)),
        }
        for part, wanted in parts.items():
            if wanted:
                letters, shape = shapes[part]
                flat[f"{path}/{part}"] = (stack + letters, (*site.stack, *shape), "float32")
    whole, letters = tree.flatten(api.abstract(config)), tree.flatten(api.axes(config))
    for path in adapter.saved:
        flat[path] = (letters[path], whole[path].shape, whole[path].dtype)
    return tree.unflatten(flat)


def init(
    adapter: Adapter,
    config: ModelConfig,
    params: Params,
    key: PRNGKeyArray,
    *,
    initial: str = "kaiming",
) -> Params:
    """Return the tree of an adapter with which the model computes what it does without.

    That of virtual tokens begins as tokens drawn from the vocabulary.

    Args:
        adapter: the form, as `plan` gives it.
        config: of the model.
        params: of the model.
        key: decides the first factors.
        initial: "kaiming": uniform up to 1 / sqrt(inputs), as in PEFT; "gaussian": normal with a
            deviation of 1 / rank.
    """
    if adapter.kind in virtual.KINDS:
        return dict(virtual.first(params, config, adapter.kind, adapter.num_virtual, key))
    known, whole, flat = sites(config), tree.flatten(params), {}
    for number, (path, leaf) in enumerate(tree.flatten(abstract(adapter, config)).items()):
        home, _, part = path.rpartition("/")
        if path in adapter.saved:
            flat[path] = jnp.array(whole[path])  # a copy: state and base are donated apart
        elif part == "a":
            site, one = known[home], jax.random.fold_in(key, number)
            if initial == "gaussian":
                drawn = jax.random.normal(one, leaf.shape) / leaf.shape[-1]
            else:
                bound = site.num_inputs**-0.5
                drawn = jax.random.uniform(one, leaf.shape, minval=-bound, maxval=bound)
            flat[path] = drawn * _within(adapter, home, leaf.shape[-1], -1, leaf.ndim)
        elif part == "magnitude":
            flat[path] = _norm(known[home], whole[home])
        else:
            flat[path] = (jnp.zeros if part == "b" else jnp.ones)(leaf.shape, leaf.dtype)
    return tree.unflatten(flat)


def _within(adapter: Adapter, path: str, rank: int, axis: int, ndim: int) -> np.ndarray:
    """Return 1 for the ranks that each layer has, else 0, along one axis of an array.

    Where both factors are 0 so are their gradients: a layer of a lower rank, or none, stays so.
    """
    on = np.arange(rank) < np.asarray(adapter.ranks[path])[..., None]
    shape = [1] * ndim
    shape[axis] = rank
    if on.ndim > 1:
        shape[0] = on.shape[0]
    return on.reshape(shape).astype(np.float32)


def attach(
    params: Params,
    adapter: Adapter,
    config: ModelConfig,
    *,
    key: PRNGKeyArray | None = None,
    scale: float = 1.0,
) -> Params:
    """Return the parameters of a model with an adapter around its weights.

    Args:
        params: of the model, stacked as `jaxgen.init` has them.
        adapter: with its numbers.
        config: of the model.
        key: turns the adapter's dropout on.
        scale: factor of all that a low rank adds.

    Returns:
        A tree that every function of a model takes; differentiable in the adapter's numbers.
    """
    whole = jax.tree.map(jnp.asarray, tree.flatten(adapter.params or {}))
    flat = tree.flatten(params)
    if adapter.kind in virtual.KINDS:
        if adapter.kind == "prompt" and config.topology != "decoder":
            return params | {"prompt": VirtualTokens(whole["prompt"])}
        keys = {path.removesuffix("/virtual"): x for path, x in whole.items()}
        if adapter.kind == "prompt":
            paths = virtual.key_paths(config, "prompt")
            keys = virtual.keys_of(params, config, whole["prompt"], paths)
        return tree.unflatten(flat | {p: Adapted(flat[p], virtual=x) for p, x in keys.items()})
    flat |= {path: whole[path].astype(flat[path].dtype) for path in adapter.saved}
    known = sites(config)
    for number, path in enumerate(adapter.targets):
        parts: Any = {part: whole.get(f"{path}/{part}") for part in PARTS}
        leaf, site = flat[path], known[path]
        if adapter.kind == "ia3":
            flat[path] = Adapted(leaf, gain=parts["gain"], before=parts["before"])
            bias = f"{path}_bias"
            if parts["gain"] is not None and bias in flat:
                flat[bias] = flat[bias] * parts["gain"].astype(flat[bias].dtype)
            continue
        factor = jnp.asarray(adapter.scale(path) * np.float32(scale))
        gain, keys = None, None
        if adapter.kind == "dora":
            low = _scaled(parts["b"], factor)
            norm = jax.lax.stop_gradient(_norm(site, leaf, parts["a"], low))
            on = np.asarray(adapter.ranks[path]).reshape(-1, *(1 for _ in site.outer)) > 0
            gain = jnp.where(on if site.stack else on[0], parts["magnitude"] / norm, 1.0)
        if key is not None and adapter.dropout:
            keys = jax.random.fold_in(key, number)
            keys = jax.random.split(keys, site.stack[0]) if site.stack else keys
        flat[path] = Adapted(
            *(leaf, parts["a"], parts["b"], factor),
            gain=gain,
            key=keys,
            rate=adapter.dropout if keys is not None else 0.0,
        )
    return tree.unflatten(flat)


def _scaled(b: Array, factor: Array) -> Array:
    return b * factor.reshape(*factor.shape, *(1 for _ in range(b.ndim - factor.ndim)))


def _norm(site: Site, weight: Any, a: Any = None, b: Any = None) -> Array:
    """Return the length of the inputs' weights of each output, of weight + a b."""

    def one(weight: Any, a: Any, b: Any) -> Array:
        matrix = plain(weight, site).astype(jnp.float32).reshape(site.num_inputs, -1)
        if a is not None:
            matrix = matrix + a.reshape(matrix.shape[0], -1) @ b.reshape(b.shape[0], -1)
        return jnp.sqrt(jnp.sum(matrix**2, axis=0)).reshape(site.sizes(site.outer))

    return (jax.vmap(one) if site.stack else one)(weight, a, b)


def plain(weight: Any, site: Site) -> Array:
    """Return one weight [contracted axes, output axes] of any leaf, made of unit vectors."""
    if not hasattr(weight, "contract"):
        return weight
    inner = site.sizes(site.inner)
    units = jnp.eye(prod(inner), dtype=jnp.float32).reshape(1, prod(inner), *inner)
    equation = f"BT{site.inner},{site.letters}->BT{site.outer}"
    with jax.default_matmul_precision("highest"):
        return contract(equation, units, weight, dtype="float32").reshape(site.shape)


def merge(params: Params, config: ModelConfig) -> Params:
    """Return parameters in which each adapter has become part of its weight.

    Quantised weights become arrays of `config.param_dtype`; the others keep their type. Raises
    ConfigError for virtual tokens, which are part of no weight.
    """
    known = sites(config)
    if "prompt" in params or num_virtual(params):
        raise ConfigError(
            "virtual tokens (kind=prompt or prefix) are part of no weight and can't be merged; "
            "keep the adapter beside the model, as --adapter has it"
        )

    def one(path: str, leaf: Any) -> Any:
        if not hasattr(leaf, "contract"):
            return leaf
        site, inside = known.get(path), leaf
        while isinstance(inside, Adapted):
            inside = inside.weight
        if site is None:
            return _table(leaf, config)
        dtype = getattr(inside, "dtype", config.param_dtype)
        form = lambda leaf: plain(leaf, site)  # noqa: E731
        return (jax.lax.map(form, leaf) if site.stack else form(leaf)).astype(dtype)

    return tree.map_paths(one, params)


def _table(leaf: Any, config: ModelConfig) -> Array:
    """Return a quantised table of tokens as an array."""
    return leaf.lookup(jnp.arange(config.V), config.param_dtype)
