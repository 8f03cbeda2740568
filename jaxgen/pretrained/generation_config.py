"""How a published model wants to be used: ids it starts and stops with, its search, its classes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxgen import files, settings, settings_yaml
from jaxgen.errors import CheckpointError
from jaxgen.settings import option

FILE = "usage.yaml"  # in our own folders
CONFIG, GENERATION = "config.json", "generation_config.json"
MAX_BYTES = 1 << 20
UNTIL = {True: "full", False: "likely", "never": "certain"}

Draw = Literal["draw", "best"]
Until = Literal["full", "likely", "certain"]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What a folder says of generation and classes; None, or nothing, where it leaves it open."""

    start: int | None = option("id that a decoder begins with", None)
    bos: int | None = option("id that begins a text", None)
    stop: tuple[int, ...] = option("ids that end a text", ())
    pad: int | None = option("id that pads", None)
    first: tuple[int, ...] = option("the only ids that can be the first new one", ())
    last: tuple[int, ...] = option("the only ids that can be the last of a text cut off", ())
    never: tuple[int, ...] = option("ids that are never made", ())
    never_first: tuple[int, ...] = option("ids that are never the first new one", ())
    never_words: tuple[tuple[int, ...], ...] = option("sequences that are never made", ())
    pick: Draw | None = option("whether tokens are drawn, or the best are taken", None)
    temperature: float | None = option("of a draw", None)
    top_k: int | None = option("of a draw", None)
    top_p: float | None = option("of a draw", None)
    min_p: float | None = option("of a draw", None)
    typical: float | None = option("of a draw", None)
    repetition_penalty: float | None = option("above 1: what is there already is less likely", None)
    source_penalty: float | None = option("above 1: what the source holds is likelier", None)
    no_repeat_ngram: int | None = option("no n-gram of this size occurs twice", None)
    no_repeat_source: int | None = option("no n-gram of this size is copied from the source", None)
    length: int | None = option("at most so many new tokens", None)
    whole_length: int | None = option("at most so many tokens, the prompt's among them", None)
    min_length: int | None = option("at least so many tokens, the prompt's among them", None)
    min_new_tokens: int | None = option("at least so many new tokens", None)
    beams: int | None = option("beams of a search", None)
    length_penalty: float | None = option("above 0 favours long texts", None)
    until: Until | None = option("when a search ends", None)
    labels: tuple[str, ...] = option("names of the classes", ())

    def told(self) -> str:
        """Return what is asked of a search or a draw, in words; "" for nothing."""
        silent = {"start", "bos", "stop", "pad", "labels"}
        given = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in silent and getattr(self, f.name) != f.default
        }
        return ", ".join(f"{name}={_short(value)}" for name, value in given.items())


def _short(value: Any) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Key(NamedTuple):
    """A key of theirs: the field of ours, how its value is read, and how it is written."""

    ours: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: list(value) if isinstance(value, tuple) else value


def _id(value: Any) -> int | None:
    if type(value) is not int or value < -1:
        raise ValueError("it wants a token id")
    return None if value == -1 else value  # how old files leave it open


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(
        i for i in map(_id, value if isinstance(value, list) else [value]) if i is not None
    )


def _sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(row, list) and row for row in value):
        raise ValueError("it wants lists of token ids")
    return tuple(_ids(row) for row in value)


def _number(least: float, most: float = math.inf, off: float | None = None):
    def read(value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("it wants a number")
        if off is not None and value == off:
            return None
        if not least < value <= most:
            raise ValueError(f"it wants a number above {least:g} and at most {most:g}")
        return float(value)

    return read


def _count(least: int, off: int | None = 0):
    def read(value: Any) -> int | None:
        if type(value) is not int or (value != off and value < least):
            raise ValueError(f"it wants a whole number from {least} on")
        return None if value == off else value

    return read


def _choice(names: Mapping[Any, str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, bool | str) or value not in names:
            raise ValueError(f"it wants one of {', '.join(map(str, names))}")
        return names[value]

    return read


def _back(names: Mapping[Any, str]) -> Callable[[str], Any]:
    return {ours: theirs for theirs, ours in names.items()}.__getitem__


def _one_or_many(value: tuple[int, ...]) -> Any:
    return value[0] if len(value) == 1 else list(value)


PICKS = {True: "draw", False: "best"}
IDS: dict[str, _Key] = {
    "bos_token_id": _Key("bos", _id),
    "eos_token_id": _Key("stop", _ids, _one_or_many),
    "pad_token_id": _Key("pad", _id),
    "decoder_start_token_id": _Key("start", _id),
}
KEYS: dict[str, _Key] = {
    **IDS,
    "forced_bos_token_id": _Key("first", _ids, _one_or_many),
    "forced_eos_token_id": _Key("last", _ids, _one_or_many),
    "suppress_tokens": _Key("never", _ids),
    "begin_suppress_tokens": _Key("never_first", _ids),
    "bad_words_ids": _Key("never_words", _sequences, lambda rows: [list(row) for row in rows]),
    "do_sample": _Key("pick", _choice(PICKS), _back(PICKS)),
    "temperature": _Key("temperature", _number(0.0)),
    "top_k": _Key("top_k", _count(1)),
    "top_p": _Key("top_p", _number(0.0, 1.0, off=1.0)),
    "min_p": _Key("min_p", _number(0.0, 1.0, off=0.0)),
    "typical_p": _Key("typical", _number(0.0, 1.0, off=1.0)),
    "repetition_penalty": _Key("repetition_penalty", _number(0.0, off=1.0)),
    "encoder_repetition_penalty": _Key("source_penalty", _number(0.0, off=1.0)),
    "no_repeat_ngram_size": _Key("no_repeat_ngram", _count(1)),
    "encoder_no_repeat_ngram_size": _Key("no_repeat_source", _count(1)),
    "max_new_tokens": _Key("length", _count(1, off=None)),
    "max_length": _Key("whole_length", _count(1, off=None)),
    "min_length": _Key("min_length", _count(1)),
    "min_new_tokens": _Key("min_new_tokens", _count(1)),
    "num_beams": _Key("beams", _count(1, off=None)),
    "length_penalty": _Key("length_penalty", _number(-math.inf)),
    "early_stopping": _Key("until", _choice(UNTIL), _back(UNTIL)),
}
# Keys of a generation config that would change a text and are not followed here.
OTHERS = frozenset(
    """
    assistant_early_exit constraints diversity_penalty dola_layers epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids guidance_scale num_beam_groups penalty_alpha
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits sequence_bias stop_strings
    token_healing top_h watermarking_config
    """.split()
)
OFF = {"guidance_scale": 1, "num_beam_groups": 1, "diversity_penalty": 0, "epsilon_cutoff": 0,
       "eta_cutoff": 0, "penalty_alpha": 0}  # fmt: skip


def read_generation_config(folder: Path) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Return (what a folder says of generation, keys it holds that are not followed).

    A Hugging Face folder: config.json, and generation_config.json, which wins. Ours: usage.yaml,
    and what a run's objective says. Raises CheckpointError that names file, key and value.
    """
    if (folder / CONFIG).exists() and not (folder / "config.yaml").exists():
        return _of_hub(folder)
    found: dict[str, Any] = {}
    if (folder / FILE).exists():
        found = settings_yaml.read(folder / FILE)
    if (folder / "config.yaml").exists():
        objective = settings_yaml.read(folder / "config.yaml").get("objective") or {}
        told = {"start": objective.get("start"), "labels": objective.get("labels")}
        found |= {name: value for name, value in told.items() if value}
        if objective.get("start") == 0:
            found["start"] = 0
    try:
        return settings.build(GenerationConfig, found), ()
    except ValueError as error:
        raise CheckpointError(f"{folder / FILE} is damaged: {error}") from error


def write_generation_config(folder: Path, usage: GenerationConfig) -> None:
    """Write what is given as usage.yaml of one of our folders; nothing if nothing is given."""
    kept = {k: v for k, v in settings.as_dict(usage).items() if v not in (None, [])}
    if kept:
        files.write(folder / FILE, settings_yaml.write(kept))


def to_hub(usage: GenerationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (keys of config.json, generation_config.json) that say the same."""
    values = {
        key: row.write(getattr(usage, row.ours))
        for key, row in KEYS.items()
        if getattr(usage, row.ours) not in (None, ())
    }
    about = {key: values[key] for key in IDS if key in values}
    if usage.labels:
        about["id2label"] = {str(i): label for i, label in enumerate(usage.labels)}
        about["label2id"] = {label: i for i, label in enumerate(usage.labels)}
    return about, values


def _of_hub(folder: Path) -> tuple[GenerationConfig, tuple[str, ...]]:
    about = _json(folder / CONFIG)
    generation, lost = {}, []
    where = dict.fromkeys(about, CONFIG)
    if (folder / GENERATION).exists():
        generation = _json(folder / GENERATION)
        where |= dict.fromkeys(generation, GENERATION)
        # The old place of all this counts only for ids once there is the new one.
        about = {key: value for key, value in about.items() if key in (*IDS, "id2label")}
    told = about | {key: value for key, value in generation.items() if value is not None}
    found: dict[str, Any] = {}
    for key, value in told.items():
        if key in OTHERS and value not in (None, False, [], OFF.get(key)):
            lost.append(f"{key}={_short(value)}")
        if key not in KEYS or value is None:
            continue
        try:
            found[KEYS[key].ours] = KEYS[key].read(value)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{folder / where[key]}: {key}={_short(value)} can't be: {error}"
            ) from None
    usage = GenerationConfig(**found, labels=_labels(folder, about.get("id2label")))
    _check(folder, usage)
    return usage, tuple(lost)


def _labels(folder: Path, names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    wanted = [str(i) for i in range(len(names))] if isinstance(names, dict) else None
    if wanted is None or sorted(names, key=str) != sorted(wanted):
        raise CheckpointError(
            f"{folder / CONFIG}: id2label does not name classes 0, 1, 2, ...: {_short(names)}"
        )
    found = tuple(str(names[key]) for key in wanted)
    # What transformers calls classes that nobody has named.
    return () if found == tuple(f"LABEL_{i}" for i in range(len(found))) else found


def _check(folder: Path, usage: GenerationConfig) -> None:
    for least, most in (("min_new_tokens", "length"), ("min_length", "whole_length")):
        few, many = getattr(usage, least), getattr(usage, most)
        if few is not None and many is not None and few > many:
            names = {row.ours: key for key, row in KEYS.items()}
            raise CheckpointError(
                f"{folder / GENERATION}: {names[least]}={few} exceeds {names[most]}={many}"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(
            files.read_artifact(path, "generation config", MAX_BYTES), object_pairs_hook=files.once
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return value
