"""Rewards of completions: a function that a config names, or the answer that a record has."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import ConfigError, nearest

ANSWER = "answer"  # the field of a record that a completion is compared with


class Completions(NamedTuple):
    """What a reward is given: of each completion its prompt, text and record, and its tokens.

    tokens: [B, L] int32, -1 past the end of a completion.
    """

    prompts: list[Any]
    texts: list[str]
    records: list[dict[str, Any]]
    tokens: np.ndarray


Reward = Callable[[Completions], np.ndarray]  # -> [B] float32


def absolute(reward: str | None) -> str | None:
    """Return the name of a reward that means the same in every working directory."""
    path, name = _parted(reward) if reward else ("", "")
    return f"{Path(path).absolute()}:{name}" if path.endswith(".py") else reward


def load(reward: str | None) -> Reward:
    """Return the reward that a config names as `module:function` or FILE.py:function.

    None: `exact`. A function of one argument is given the tokens, any other prompts, texts and
    records. Raises ConfigError where there is none, or its code can't be run; so does what is
    returned, where the function raises, or returns anything else than a finite number for each.
    """
    if reward is None:
        return exact
    place, name = _parted(reward)
    try:
        module = _run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        absent = isinstance(error, FileNotFoundError) and not Path(place).exists()
        said = "there is no such file" if absent else _said(error)
        raise ConfigError(f"policy.reward={reward}: {said}") from error
    function = getattr(module, name, None)
    if not callable(function):
        named = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        near = nearest(name, named) or f"; it has {', '.join(named[:8]) or 'none'}"
        raise ConfigError(f"policy.reward={reward}: {place} has no function {name!r}{near}")
    return partial(_checked, function, reward)


def _parted(reward: str) -> tuple[str, str]:
    place, colon, name = reward.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise ConfigError(
            f"policy.reward={reward!r} is no module:function, such as my_rewards:length, and no "
            f"FILE.py:function"
        )
    return place, name


def _run_file(path: Path) -> Any:
    name = f"_reward_{sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _said(error: Exception) -> str:
    """Return what was raised, and in which line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said} ({Path(frame.filename).name}:{frame.lineno})"


def _checked(function: Callable[..., Any], reward: str, completions: Completions) -> np.ndarray:
    texts = completions.texts
    given = (completions.tokens,) if _takes_tokens(function) else completions[:3]
    try:
        values = function(*given)
    except Exception as error:
        raise ConfigError(f"policy.reward={reward} raised {_said(error)}") from error
    try:
        rewards = np.asarray(values)
    except (TypeError, ValueError):  # rows of different lengths
        rewards = np.zeros(())
    if rewards.shape != (len(texts),):
        size = f"{len(values)} values" if isinstance(values, list | tuple) else f"{values!r:.40}"
        size = f"shape {list(rewards.shape)}" if rewards.ndim > 1 else size
        raise ConfigError(
            f"policy.reward={reward} returned {size} for {len(texts)} completions; it must return "
            f"a number for each"
        )
    if rewards.dtype.kind in "OUS":
        odd = next(value for value in values if not isinstance(value, int | float))
        raise ConfigError(f"policy.reward={reward} returned {odd!r:.40}, which is no number")
    rewards = rewards.astype(np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(rewards))):
        raise ConfigError(
            f"policy.reward={reward} returned {rewards[bad[0]]} for the completion "
            f"{texts[bad[0]]!r:.60}; a reward is a finite number"
        )
    return rewards


def _takes_tokens(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return len([p for p in parameters if p.default is p.empty and p.kind < p.KEYWORD_ONLY]) == 1


def exact(completions: Completions) -> np.ndarray:
    """Return 1 for each completion that is the answer of its record, but for blanks, else 0."""
    pairs = zip(completions.texts, completions.records, strict=True)
    same = [text.strip() == str(record.get(ANSWER, "")).strip() for text, record in pairs]
    return np.asarray(same, np.float32)


def has_answers(records: Sequence[dict[str, Any]]) -> bool:
    """Return whether all of the records have an answer."""
    return all(record.get(ANSWER) is not None for record in records)
