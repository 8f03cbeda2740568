"""Defaults of a request from generation_config.json; each of its keys stands here once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import IDS, GenerationConfig
from jaxgen.text.request import CHANCE, DRAWING, Generation

# Keys that are ours under another name, in the order in which later ones depend on earlier ones.
SAME: dict[str, str] = {
    "max_new_tokens": "max_new_tokens",
    "max_length": "max_length",
    "min_length": "min_length",
    "min_new_tokens": "min_new_tokens",
    "max_time": "max_seconds",
    "stop_strings": "stop",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "renormalize_logits": "renormalize",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "top_h": "top_h",
    "typical_p": "typical",
    "epsilon_cutoff": "epsilon",
    "eta_cutoff": "eta",
    "prompt_lookup_num_tokens": "lookup",
    "dola_layers": "dola",
    "guidance_scale": "guidance",
    "repetition_penalty": "repetition_penalty",
    "encoder_repetition_penalty": "source_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "encoder_no_repeat_ngram_size": "no_repeat_source",
    "suppress_tokens": "suppress_ids",
    "forced_eos_token_id": "force_last",
}
TOP_K = 50  # candidates of contrastive search, as transformers has them where nobody says


def _bad_words(config: GenerationConfig, begins: bool) -> dict[str, Any]:
    return {"bad_words_ids": tuple(",".join(map(str, row)) for row in config.bad_words_ids)}


def _decay(config: GenerationConfig, begins: bool) -> dict[str, Any]:
    start, factor = config.exponential_decay_length_penalty or (None, None)
    return {"decay_start": start, "decay_factor": factor}


def _first(config: GenerationConfig, begins: bool) -> dict[str, Any]:
    # A text that goes on from a prompt has begun already.
    return {"force_first": config.forced_bos_token_id} if begins else {}


# Keys that need more than a new name.
OTHERS: dict[str, Callable[[GenerationConfig, bool], dict[str, Any]]] = {
    "num_beam_groups": lambda config, _: {
        "groups": config.num_beam_groups, "diversity": config.diversity_penalty,
    },
    "diversity_penalty": lambda config, _: {},  # with num_beam_groups
    "exponential_decay_length_penalty": _decay,
    "bad_words_ids": _bad_words,
    "forced_bos_token_id": _first,
    "begin_suppress_tokens": lambda config, _: {"suppress_first_ids": config.begin_suppress_tokens},
    # The strategy, see `_way`.
    **dict.fromkeys(("do_sample", "temperature", "num_beams", "penalty_alpha"), lambda *_: {}),
    # Special ids belong to the model, not to a request.
    **dict.fromkeys(IDS, lambda config, _: {}),
}  # fmt: skip


@lru_cache(maxsize=256)
def fill(settings: Generation, config: GenerationConfig, begins: bool) -> Generation:
    """Return the settings of a request, completed by the folder's generation config.

    begins: the text begins with its first new token, as with every encoder-decoder, not with a
    prompt. Defaults that contradict the request are dropped.
    """
    offers = [_way(settings, config)]
    offers += [{ours: getattr(config, key)} for key, ours in SAME.items()]
    offers += [
        make(config, begins)
        for key, make in OTHERS.items()
        if getattr(config, key) not in (None, ())
    ]
    for offer in offers:
        changes = {n: v for n, v in offer.items() if v not in (None, ()) and not settings.gives(n)}
        if settings.max_length is not None:  # the request says in another way how long
            changes.pop("max_new_tokens", None)
        if settings.temperature == 0 or settings.do_sample is False:  # nothing is drawn
            changes = {n: v for n, v in changes.items() if n not in DRAWING}
        try:
            settings = replace(settings, **changes)
        except ConfigError:
            continue
    return settings


def settle(settings: Generation, config: GenerationConfig, *ways: dict[str, Any]) -> Generation:
    """Return the settings with the first compatible decoding strategy of `ways`.

    Unchanged where they, or the folder, choose a strategy.
    """
    filled = fill(settings, config, True)
    if filled.strategy == "draw" and not any(map(filled.gives, CHANCE)) and not filled.do_sample:
        for way in ways:
            try:
                return replace(settings, **way)
            except ConfigError:
                continue
    return settings


def describe(settings: Generation, config: GenerationConfig) -> str:
    """Return what `fill` takes from the folder for a text from its beginning; "" for nothing."""
    filled = fill(settings, config, True)
    changed = {n: v for n, v in vars(filled).items() if v != getattr(settings, n)}
    return ", ".join(f"{name}={value}" for name, value in changed.items())


def _way(settings: Generation, config: GenerationConfig) -> dict[str, Any]:
    """Return the strategy: a search, greedy, or sampling."""
    if settings.temperature is not None or settings.strategy != "draw":
        return {}
    sampled = config.do_sample if settings.do_sample is None else settings.do_sample
    if (config.num_beams or 1) > 1:
        sampling = {"do_sample": True, "temperature": config.temperature} if sampled else {}
        return {"beams": config.num_beams} | sampling
    if config.penalty_alpha and not sampled:
        return {"contrastive": config.penalty_alpha, "top_k": config.top_k or TOP_K}
    if sampled is False:
        return {"do_sample": False}
    plain = 1.0 if sampled or config.top_p is not None else None
    return {"temperature": plain if config.temperature is None else config.temperature}
