"""Shadow models: trained as a run was, each on half of the pool and on all other training text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from jaxgen import files
from jaxgen.audit.pool import Pool
from jaxgen.data.settings import DataSettings
from jaxgen.errors import ConfigError
from jaxgen.run.folder import TOKENIZER
from jaxgen.run.settings import SampleSettings, Settings
from jaxgen.run.training import train
from jaxgen.text.loaded_model import LoadedModel, open_model
from jaxgen.tokens.settings import TokenizerSettings

SEED = 0x5AD0  # added to a run's seed for its shadows


def score_shadows(
    settings: Settings,
    run: Path,
    pool: Pool,
    number: int,
    *,
    folder: Path,
    cache: Path,
    score: Callable[[LoadedModel], np.ndarray],
) -> tuple[Float[np.ndarray, "K N"], Bool[np.ndarray, "K N"]]:
    """Return (scores of the pool by each shadow model, whether it was trained on the piece).

    They lie in `folder`, and one that is whole is not trained again. Each piece is in the text of
    half of them. Raises ConfigError for an odd number, or a run whose shadows would have other ids.
    """
    inside = coins(number, len(pool.texts), settings.train.seed)
    scores = []
    for k, chosen in enumerate(inside):
        home = folder / f"shadow-{k}"
        text = folder / f"shadow-{k}.jsonl"
        own = settings.data.canaries.repeats
        lines = [*pool.rest]
        for i in np.flatnonzero(chosen):
            lines += [pool.texts[i]] * (own if pool.canary[i] else 1)
        folder.mkdir(parents=True, exist_ok=True)
        files.write(text, "".join(json.dumps({"text": line}) + "\n" for line in lines))
        train(shadow_settings(settings, run, text, k), home, cache=cache)
        scores.append(score(open_model(home)))
    return np.stack(scores), inside


def coins(shadows: int, texts: int, seed: int) -> Bool[np.ndarray, "K N"]:
    """Return which texts each shadow model is trained on: each text half of them."""
    draw = np.random.default_rng(seed + SEED)
    order = np.argsort(draw.random((texts, shadows)), axis=1)
    return (order < shadows // 2).T


def check_shadows(settings: Settings, number: int) -> None:
    """Raise ConfigError for a number of shadow models, or a run, that can't be."""
    if number % 2:
        raise ConfigError(f"--shadows={number} must be even: each piece is in the text of half")
    privacy, kind = settings.train.privacy, settings.tokenizer.kind
    if number and kind == "chars":
        raise ConfigError(
            f"--shadows={number} needs a tokenizer that reads any text, but tokenizer.kind={kind} "
            f"is made of the training text; leave --shadows out"
        )
    if number and privacy.on and privacy.unit not in ("document", "row"):
        raise ConfigError(
            f"--shadows={number} trains on single pieces, but train.privacy.unit={privacy.unit}; "
            f"leave --shadows out"
        )


def shadow_settings(settings: Settings, run: Path, text: Path, number: int) -> Settings:
    """Return the settings of a shadow model: a run's own, with another text and seed."""
    own, tokenizer = settings.train, settings.tokenizer
    if tokenizer.kind in ("bpe", "unigram"):
        tokenizer = TokenizerSettings(kind="file", file=run / TOKENIZER / "tokenizer.model")
    privacy = replace(own.privacy, seed=None, solved_noise=None)
    return replace(
        settings,
        tokenizer=tokenizer,
        data=DataSettings(files=(str(text.absolute()),), valid_fraction=0.0, test_fraction=0.0),
        train=replace(
            own,
            seed=own.seed + 1 + number,
            epochs=None,
            early_stopping=None,
            track=(),
            privacy=privacy,
        ),
        checkpoint=replace(settings.checkpoint, every=own.steps, keep_last=1, keep_best=0),
        sample=SampleSettings(),
    )
