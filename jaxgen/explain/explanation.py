"""A text explained: its trace, attributions, lenses and heads as JSON-able data, and as a page."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple
from unicodedata import normalize

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.data.copies import CopyIndex
from jaxgen.errors import ConfigError, nearest
from jaxgen.explain import page
from jaxgen.explain.attention import attention_maps
from jaxgen.explain.attention import rollout as roll_out
from jaxgen.explain.attribution import (
    MOST_SPANS,
    Attribution,
    average,
    gradient_x_input,
    integrated_gradients,
    occlusion,
    sampled_shapley,
    shapley,
)
from jaxgen.explain.curves import faithfulness
from jaxgen.explain.decode_trace import Trace, trace
from jaxgen.explain.direct import check_direct, direct_logits
from jaxgen.explain.lens import logit_lens
from jaxgen.explain.patching import largest
from jaxgen.explain.scores import Baseline, ModelScore, class_scores, no_text, token_scores
from jaxgen.models import api
from jaxgen.nn.stack import layer_taps
from jaxgen.text.loaded_model import LoadedModel, check_generates
from jaxgen.text.prompts import Prompt, ids_of
from jaxgen.text.request import Generation
from jaxgen.text.session import session_of
from jaxgen.tokens.marks import text_or_name

FORMAT = 1
HEADS = 6  # whose attention is drawn
DEFAULT = ("integrated_gradients", "occlusion", "rollout")
DEFAULT_TOKENS = 4  # explained of a text, if it has as many


class Question(NamedTuple):
    """Tokens or classes to explain, and all that a model reads for them.

    ids: source, if any, then what the decoder (or the only tower) reads and what is explained.
    positions: of the explained tokens among the decoder's; empty for classes.
    """

    params: api.Params
    config: ModelConfig
    score: ModelScore
    embeds: Any
    ids: list[int]
    num_source: int
    positions: list[int]
    targets: list[int]
    names: list[str]

    def explained(self) -> list[dict[str, Any]]:
        """Return the text and the place among `ids` of each; the place of a class is None."""
        places = [self.num_source + at for at in self.positions] or [None] * len(self.names)
        pairs = zip(places, self.names, strict=True)
        return [{"place": place, "text": text} for place, text in pairs]


@dataclass(frozen=True)
class Explanation:
    """An explanation as JSON-able data; a notebook shows it as its page."""

    data: dict[str, Any]

    def html(self) -> str:
        """Return the page, which needs nothing else."""
        return page.html(self.data)

    def _repr_html_(self) -> str:
        frame = "style='width:100%;height:640px;border:0'"
        return f"<iframe srcdoc='{escape(self.html(), quote=True)}' {frame}></iframe>"


def _shapley(score: Any, embeds: Any, baseline: Any) -> Attribution:
    if len(embeds) <= MOST_SPANS:
        return shapley(score, embeds, baseline=baseline)
    return sampled_shapley(score, embeds, jax.random.key(0), baseline=baseline, pairs=16)


METHODS: dict[str, Callable[..., Attribution]] = {
    "integrated_gradients": lambda *a: integrated_gradients(*a[:2], baseline=a[2]),
    "gradient_x_input": lambda *a: gradient_x_input(*a[:2], baseline=a[2]),
    "occlusion": lambda *a: occlusion(*a[:2], baseline=a[2]),
    "shapley": _shapley,
}
ATTENTION = {"rollout": "probs", "value_rollout": "values"}  # what weighs attention


def explain(
    model: LoadedModel,
    prompt: str,
    *,
    target: str | None = None,
    settings: Generation | None = None,
    methods: Sequence[str] = DEFAULT,
    baseline: Baseline = "tokens",
    tokens: int | None = None,
    index: CopyIndex | None = None,
    name: str = "",
    progress: Callable[[str], object] = lambda part: None,
) -> Explanation:
    """Return why a model goes on from a prompt as it does, or gives a text its class.

    Args:
        model: a decoder or encoder-decoder that makes text, or a classifier.
        prompt: the text that it reads.
        target: a text to explain instead of the one that is generated, or the label of a class.
        settings: of the generation, whose trace is then part of the explanation; without a target.
        methods: names of METHODS and ATTENTION.
        baseline: what stands for no text, as of `explain.scores.no_text`.
        tokens: how many of the new tokens, from the first on, are explained; None: 4 at most. A
            warning says where fewer were generated.
        index: of training text, which is searched for copies of the new tokens.
        name: of the model, for the page.
        progress: called with the name of each part before it is computed.

    Returns:
        An Explanation; log-probabilities are explained, computed in float32. Raises ConfigError for
        what the model has not, such as a label, for an argument that has no effect, and as
        generation does.
    """
    _check_methods(methods)
    progress("tokens")
    question, traced, new = _ask(model, prompt, target, settings or Generation(), tokens, index)
    sizes = {"size": len(question.embeds), "num_source": question.score.num_source}
    nothing = no_text(model.params, question.config, **sizes, baseline=baseline)
    attributions = {}
    for method in methods:
        progress(method)
        attributions[method] = _attribution(question, method, nothing)
    progress("layers and heads")
    data = {
        "format": FORMAT,
        "baseline": baseline,
        "model": name,
        "prompt": prompt,
        "target": target,
        "tokens": [text_or_name(model.tokenizer, token) for token in question.ids],
        "num_source": question.num_source,
        "explained": question.explained(),
        "attributions": attributions,
        "trace": None if traced is None else _spelled(traced, model),
        "memory": None if index is None else _memory(index, new, model),
    }
    return Explanation(data | (_inside(question, model) if question.positions else {}))


def _ask(
    model: LoadedModel,
    prompt: str,
    target: str | None,
    settings: Generation,
    tokens: int | None,
    index: CopyIndex | None,
) -> tuple[Question, Trace | None, list[int]]:
    """Return (what is explained, the trace of a text that is generated for it, the new ids)."""
    if model.config.head == "classes":
        _refuse_unread(settings, tokens, index)
        return _about_class(model, prompt, target), None, []
    check_generates(model)
    traced = None
    if target is None:
        _check_tokens(tokens, "max_new_tokens", settings.max_new_tokens)
        traced = trace(session_of(model), Prompt(prompt, settings))
        before, new = list(traced.ids), traced.tokens
    else:
        before, new = ids_of(model, prompt), _target_ids(model, target, settings)
        _check_tokens(tokens, "the tokens of the target, number", len(new))
    question = _about_tokens(model, before, new, DEFAULT_TOKENS if tokens is None else tokens)
    if tokens is not None and len(question.targets) < tokens:
        warnings.warn(
            f"tokens={tokens}: only {len(question.targets)} were generated and are explained",
            stacklevel=3,
        )
    return question, traced, new


def _check_methods(methods: Sequence[str]) -> None:
    names = [*METHODS, *ATTENTION]
    if not methods:
        raise ConfigError(f"methods is empty; there are {', '.join(names)}")
    for method in methods:
        if method not in names:
            raise ConfigError(
                f"methods={method} is none{nearest(method, names)}; there are {', '.join(names)}"
            )


def _check_tokens(tokens: int | None, name: str, most: int | None) -> None:
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens={tokens} must be at least 1")
    if tokens is not None and most is not None and tokens > most:
        raise ConfigError(f"tokens={tokens} is more than {name}={most}; explain fewer")


def _refuse_unread(settings: Generation, tokens: int | None, index: CopyIndex | None) -> None:
    """Raise ConfigError for an argument that the explanation of a class does not read."""
    generation = None if settings == Generation() else settings
    unread = {"settings": generation, "tokens": tokens, "index (--memory)": index}
    for name, value in unread.items():
        if value is not None:
            raise ConfigError(
                f"{name}: this model gives a class and generates no text; leave it out"
            )


def explained_config(config: ModelConfig) -> ModelConfig:
    """Return the config of explanations: float32, and a scan of layers, which compiles sooner."""
    return config.replace(compute_dtype="float32", unroll=1)


def _target_ids(model: LoadedModel, target: str, settings: Generation) -> list[int]:
    """Return the ids of a text; ConfigError if they lose a letter or digit of it."""
    if not target:
        raise ConfigError("target is empty; give at least one character to explain, or none at all")
    if settings != Generation():
        raise ConfigError(
            f"target={target!r:.60} is explained as it stands; leave out how text is generated"
        )
    ids = model.tokenizer.encode(target)
    read = model.tokenizer.decode(ids)
    if not ids or _letters(read) != _letters(target):
        raise ConfigError(
            f"target={target!r} is not in the vocabulary, which reads it as {read!r}; give another"
        )
    return ids


def _letters(text: str) -> list[str]:
    return [one for one in normalize("NFKD", text).casefold() if one.isalnum()]


def _about_tokens(model: LoadedModel, before: list[int], new: list[int], most: int) -> Question:
    config = explained_config(model.config)
    source = before if model.reads_sources else None
    first = [model.start] if source is not None else before
    ids = [*first, *new]
    if len(ids) > config.longest:
        raise ConfigError(f"prompt and target have {len(ids)} tokens, more than {config.longest}")
    if source is None and len(before) < 1:
        raise ConfigError("prompt is empty; give at least one token")
    positions = list(range(len(first), min(len(ids), len(first) + most)))
    if not positions:
        raise ConfigError("no token was made; give a target, or another prompt")
    score, embeds = token_scores(model.params, config, ids, positions, source=source)
    targets = [ids[place] for place in positions]
    return Question(
        *(model.params, config, score, embeds, [*(source or []), *ids], len(source or [])),
        *(positions, targets, [text_or_name(model.tokenizer, one) for one in targets]),
    )


def _about_class(model: LoadedModel, text: str, label: str | None) -> Question:
    config = explained_config(model.config)
    ids = ids_of(model, text)
    labels = list(model.labels or map(str, range(config.classes or 0)))
    if label is not None and label not in labels:
        near = nearest(label, labels)
        raise ConfigError(f"target={label} is no label of this model{near}; it has {labels}")
    score, embeds = class_scores(
        model.params, config, ids, list(range(len(labels))), start=model.start
    )
    best = int(score(embeds[None])[0].argmax()) if label is None else labels.index(label)
    score, embeds = class_scores(model.params, config, ids, [best], start=model.start)
    both = len(ids) if config.topology == "encoder_decoder" else 0
    about = ids, both, [], [best], [labels[best]]
    return Question(model.params, config, score, embeds, *about)


def _attribution(question: Question, method: str, baselines: Any) -> dict[str, Any]:
    """Return a method's values and how faithful they are, the mean of several baselines."""
    score, embeds = question.score, question.embeds
    if method in METHODS:
        out = average([METHODS[method](score, embeds, one) for one in baselines])
        values = out.values
        more = {"score": out.score, "baseline": out.baseline, "gap": out.gap, "steps": out.steps}
        more |= {} if out.low is None else {"low": out.low, "high": out.high}
    else:
        values, more = _rollout(question, ATTENTION[method]), {}
    how = {"visible": score.visible, "points": 6, "orders": 4}
    key = jax.random.key(0)
    curves = average(
        [faithfulness(score, embeds, values, key, baseline=one, **how) for one in baselines]
    )
    return _plain({"values": values, **more, "faithfulness": curves._asdict()})


def _rollout(question: Question, weigh: Any) -> Any:
    config, split = question.config, question.num_source
    ids = np.asarray(question.ids, np.int32)[None]
    source = None
    if config.topology == "encoder_decoder":
        source, ids = ids[:, :split], ids[:, split:] if question.positions else ids
        if not question.positions:  # a classifier's decoder reads the source as well
            ids = np.concatenate([np.full((1, 1), question.score.start), ids[:, :-1]], axis=1)
    maps = attention_maps(question.params, config, ids, source=source, weigh=weigh)
    total = roll_out(maps)[0, :, : len(question.embeds)]
    if question.positions:
        return total[split + question.score.states]
    first = config.topology == "encoder" and config.head_layer.pool == "first"
    return total[:1] if first else total[-1:]


def _inside(question: Question, model: LoadedModel) -> dict[str, Any]:
    """Return lens, direct logits and attention of the heads that move the tokens most."""
    params, config, split = question.params, question.config, question.num_source
    ids = np.asarray(question.ids, np.int32)[None]
    memory = api.encode(params, config, ids[:, :split]) if split else None
    ids, states = ids[:, split:], np.asarray(question.score.states)
    targets = np.asarray(question.targets, np.int32)
    inside: dict[str, Any] = {"lens": None, "direct": None, "heads": []}
    if config.residual.streams == 1:
        top = min(3, config.V)
        lens = logit_lens(params, config, ids, states, targets, memory=memory, top=top)
        inside["lens"] = _plain(lens._asdict())
        inside["lens"]["texts"] = [
            [text_or_name(model.tokenizer, row[0]) for row in layer]
            for layer in inside["lens"]["ids"]
        ]
    try:
        check_direct(config)
    except ConfigError as error:
        return inside | {"no_direct": str(error)}
    parts = direct_logits(params, config, ids, states, targets, memory=memory)
    plain = _plain(parts._replace(neurons=None)._asdict())
    if parts.neurons is not None:
        each = [largest(parts.neurons[:, row], 10) for row in range(len(targets))]
        plain["neurons"] = each
    inside["direct"] = plain
    taps = ("*/attn/probs",)
    probs = api.apply(params, config, ids, memory=memory, taps=taps).taps
    for layer, head, amount in largest(jnp.asarray(parts.heads[:, 0]), HEADS):
        own = layer_taps(probs, config, layer)["attn/probs"][0, head]
        about = {"layer": layer, "head": head, "amount": amount}
        inside["heads"].append(about | {"probs": _plain(own)})
    return inside


def _spelled(traced: Trace, model: LoadedModel) -> dict[str, Any]:
    """Return a trace with the texts of the ids that it names."""
    data = traced.as_json()
    for step in data["steps"]:
        named = {step["token"], step["rival"], *step["best"], *step["top_ids"]}
        step["texts"] = {str(one): text_or_name(model.tokenizer, one) for one in sorted(named)}
        step["forbidden_by"] = {str(one): rule for one, rule in step["forbidden_by"].items()}
    return data


def _memory(index: CopyIndex, new: list[int], model: LoadedModel) -> dict[str, Any]:
    """Return the longest copies of new tokens in the training text, and the nearest passages."""
    spell = model.tokenizer.decode
    copies = sorted(index.copies(new, shortest=2), key=lambda one: -one.length)[:5]
    return {
        "copies": [
            vars(one) | {"text": spell(new[one.begin : one.begin + one.length])} for one in copies
        ],
        "passages": [
            vars(one)
            | {"text": spell(index.tokens_of(one.document, one.offset, one.length).tolist())}
            for one in index.nearest(new, width=3)
        ],
    }


def _plain(tree: Any) -> Any:
    """Return arrays as lists of numbers with 5 digits."""

    def lists(leaf: Any) -> Any:
        values = np.asarray(leaf)
        if not np.issubdtype(values.dtype, np.floating):
            return values.tolist()
        each = [float(f"{x:.5g}") if np.isfinite(x) else None for x in values.ravel()]
        return np.asarray(each, object).reshape(values.shape).tolist()

    return jax.tree.map(lists, tree)
