"""What a folder says of generation, as the settings that a request leaves open.

The only translation of generation_config.json: each of its keys stands here once.
"""

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


# Keys that want more than another name: what each makes of the settings.
OTHERS: dict[str, Callable[[GenerationConfig, bool], dict[str, Any]]] = {
    "num_beam_groups": lambda config, _: {
        "groups": config.num_beam_groups, "diversity": config.diversity_penalty,
    },
    "diversity_penalty": lambda config, _: {},  # with num_beam_groups
    "exponential_decay_length_penalty": _decay,
    "bad_words_ids": _bad_words,
    "forced_bos_token_id": _first,
    "begin_suppress_tokens": lambda config, _: {"suppress_first_ids": config.begin_suppress_tokens},
    # The way of decoding, which `_way` chooses.
    **dict.fromkeys(("do_sample", "temperature", "num_beams", "penalty_alpha"), lambda *_: {}),
    # What a model starts, ends and pads with is the model's, not a request's.
    **dict.fromkeys(IDS, lambda config, _: {}),
}  # fmt: skip


@lru_cache(maxsize=256)
def fill(asked: Generation, config: GenerationConfig, begins: bool) -> Generation:
    """Return the settings of a request with what the folder says where it asks for nothing.

    begins: the text begins with its first new token, as every text of an encoder-decoder, and goes
    on from no prompt. What contradicts the request is left out: it asks for another way to decode.
    """
    offers = [_way(asked, config)]
    offers += [{ours: getattr(config, key)} for key, ours in SAME.items()]
    offers += [
        make(config, begins)
        for key, make in OTHERS.items()
        if getattr(config, key) not in (None, ())
    ]
    for offer in offers:
        wanted = {n: v for n, v in offer.items() if v not in (None, ()) and not asked.gives(n)}
        if asked.max_length is not None:  # the request says in another way how long
            wanted.pop("max_new_tokens", None)
        if asked.temperature == 0 or asked.do_sample is False:  # nothing is drawn
            wanted = {n: v for n, v in wanted.items() if n not in DRAWING}
        try:
            asked = replace(asked, **wanted)
        except ConfigError:
            continue
    return asked


def settle(asked: Generation, config: GenerationConfig, *ways: dict[str, Any]) -> Generation:
    """Return the settings with the first of some ways to decode that goes with them.

    They are left alone where they, or the folder, choose a way.
    """
    filled = fill(asked, config, True)
    if filled.strategy == "draw" and not any(map(filled.gives, CHANCE)) and not filled.do_sample:
        for way in ways:
            try:
                return replace(asked, **way)
            except ConfigError:
                continue
    return asked


def describe(asked: Generation, config: GenerationConfig) -> str:
    """Return what `fill` takes from the folder for a text from its beginning; "" for nothing."""
    found = fill(asked, config, True)
    return ", ".join(
        f"{name}={value}" for name, value in vars(found).items() if value != getattr(asked, name)
    )


def _way(asked: Generation, config: GenerationConfig) -> dict[str, Any]:
    """Return how tokens are chosen: a search, the likeliest, or drawn ones."""
    if asked.temperature is not None or asked.strategy != "draw":
        return {}
    sampled = config.do_sample if asked.do_sample is None else asked.do_sample
    if (config.num_beams or 1) > 1:
        drawn = {"do_sample": True, "temperature": config.temperature} if sampled else {}
        return {"beams": config.num_beams} | drawn
    if config.penalty_alpha and not sampled:
        return {"contrastive": config.penalty_alpha, "top_k": config.top_k or TOP_K}
    if sampled is False:
        return {"do_sample": False}
    plain = 1.0 if sampled or config.top_p is not None else None
    return {"temperature": plain if config.temperature is None else config.temperature}
