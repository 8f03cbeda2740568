"""What a folder says of generation: generation_config.json, by the names that it has there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxgen import arguments, files, settings_yaml
from jaxgen.errors import CheckpointError
from jaxgen.pretrained.gguf_read import is_gguf, read_generation

CONFIG, GENERATION = "config.json", "generation_config.json"
WHAT, MAX_BYTES = "generation config", 1 << 20


ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


def _id(value: Any) -> int | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
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


def _count(least: int, off: tuple[int, ...] = (0,)):
    def read(value: Any) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or (value not in off and value < least):
            raise ValueError(f"it wants a whole number from {least} on")
        return None if value in off else value

    return read


def _temperature(value: Any) -> float | None:
    return 0.0 if value == 0 and value is not False else _number(0.0)(value)


def _flag(*words: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, bool) and value not in words:
            raise ValueError(f"it wants one of {', '.join(('True', 'False', *words))}")
        return value

    return read


def _texts(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("it wants texts")
    return tuple(texts)


def _layers(value: Any) -> str:
    if value not in ("low", "high"):
        raise ValueError("only low and high are known here")
    return value


def _decay(value: Any) -> tuple[int | None, float | None]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("it wants [start, factor]")
    return _count(0, off=())(value[0]), _number(0.0)(value[1])


def _one_or_many(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else _plain(value)


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _key(read: Callable[[Any], Any], write: Callable[[Any], Any] = _plain, default: Any = None):
    """Return the field of a key: how its value is read, and how it is written again."""
    return field(default=default, metadata={"read": read, "write": write})


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The keys of generation_config.json; None, or nothing, where a folder leaves one open.

    forced_eos_token_id may name several ids, one of which then ends a text that is cut off.
    Of config.json: labels: names of the classes, its id2label. problem_type: what those classes
    are. prefix: what comes before each text that is rewritten. task_specific_params: (task, JSON of
    its keys) of each that it names; see `for_task`. speech: (key, JSON of its value) of a Whisper
    model's own keys, see `text.tasks.transcription`.
    """

    bos_token_id: int | None = _key(_id)
    eos_token_id: tuple[int, ...] = _key(_ids, _one_or_many, ())
    pad_token_id: int | None = _key(_id)
    decoder_start_token_id: int | None = _key(_id)
    forced_bos_token_id: tuple[int, ...] = _key(_ids, _one_or_many, ())
    forced_eos_token_id: tuple[int, ...] = _key(_ids, _one_or_many, ())
    suppress_tokens: tuple[int, ...] = _key(_ids, default=())
    begin_suppress_tokens: tuple[int, ...] = _key(_ids, default=())
    bad_words_ids: tuple[tuple[int, ...], ...] = _key(_sequences, default=())
    stop_strings: tuple[str, ...] = _key(_texts, _one_or_many, ())
    do_sample: bool | None = _key(_flag())
    temperature: float | None = _key(_temperature)
    top_k: int | None = _key(_count(1, off=(0, -1)))
    top_p: float | None = _key(_number(0.0, 1.0, off=1.0))
    min_p: float | None = _key(_number(0.0, 1.0, off=0.0))
    top_h: float | None = _key(_number(0.0, 1.0))
    typical_p: float | None = _key(_number(0.0, 1.0, off=1.0))
    epsilon_cutoff: float | None = _key(_number(0.0, 1.0, off=0.0))
    eta_cutoff: float | None = _key(_number(0.0, 1.0, off=0.0))
    repetition_penalty: float | None = _key(_number(0.0, off=1.0))
    encoder_repetition_penalty: float | None = _key(_number(0.0, off=1.0))
    no_repeat_ngram_size: int | None = _key(_count(1))
    encoder_no_repeat_ngram_size: int | None = _key(_count(1))
    max_new_tokens: int | None = _key(_count(1, off=()))
    max_length: int | None = _key(_count(1, off=()))
    min_length: int | None = _key(_count(1))
    min_new_tokens: int | None = _key(_count(1))
    max_time: float | None = _key(_number(0.0))
    exponential_decay_length_penalty: tuple[int, float] | None = _key(_decay)
    num_beams: int | None = _key(_count(1, off=()))
    num_beam_groups: int | None = _key(_count(1, off=(1,)))
    diversity_penalty: float | None = _key(_number(0.0, off=0.0))
    length_penalty: float | None = _key(_number(-math.inf))
    early_stopping: bool | Literal["never"] | None = _key(_flag("never"))
    renormalize_logits: bool | None = _key(lambda value: _flag()(value) or None)
    penalty_alpha: float | None = _key(_number(0.0, 1.0, off=0.0))
    dola_layers: Literal["low", "high"] | None = _key(_layers)
    guidance_scale: float | None = _key(_number(-math.inf, off=1.0))
    prompt_lookup_num_tokens: int | None = _key(_count(1))
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    prefix: str | None = None
    task_specific_params: tuple[tuple[str, str], ...] = ()
    speech: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """Return what is asked of a search or a draw, in words; "" for nothing."""
        given = {
            name: getattr(self, name)
            for name, one in KEYS.items()
            if name not in IDS and getattr(self, name) != one.default
        }
        return ", ".join(f"{name}={_short(value)}" for name, value in given.items())


KEYS = {one.name: one for one in fields(GenerationConfig) if one.metadata}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")  # of config.json
MODEL = ("id2label", "problem_type", "prefix", "task_specific_params")  # of config.json alone
SPEECH = (
    *("is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id", "language", "task"),
    *("prev_sot_token_id", "max_initial_timestamp_index", "alignment_heads", "return_timestamps"),
    "forced_decoder_ids",
)
# Keys that would change a text, and are not followed here: they are named.
UNSUPPORTED = frozenset(
    """
    assistant_early_exit constraints force_words_ids num_return_sequences remove_invalid_values
    sequence_bias token_healing watermarking_config
    """.split()
)
OFF = {"num_return_sequences": 1}
# Keys that change no text: how transformers computes, caches and returns it.
NO_EFFECT = frozenset(
    """
    _from_model_config assistant_confidence_threshold assistant_ensemble_weight
    assistant_lookbehind cache_config cache_implementation compile_config
    continuous_batching_config disable_compile is_assistant low_memory max_cache_len
    max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule output_attentions
    output_hidden_states output_logits output_scores prefill_chunk_size return_dict_in_generate
    return_legacy_cache speculation_type target_lookbehind transformers_version use_cache use_mtp
    generation_kwargs _commit_hash use_model_defaults
    """.split()
)


def _short(value: Any) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_generation_config(
    folder: Path, *, unsaid: bool = False
) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Return (what a folder says of generation, keys it holds that are not followed).

    A Hugging Face folder: config.json, and generation_config.json, which wins. Ours:
    generation_config.json, and what a run's objective says. A value that can't be is not followed,
    and named with the reason: it matters to those who generate alone. unsaid: also what llama.cpp
    takes for what a GGUF file leaves open. Raises CheckpointError for a damaged file.
    """
    path = folder / GENERATION
    if (folder / "usage.yaml").exists():
        raise CheckpointError(
            f"{folder / 'usage.yaml'} was written by an older jaxgen; convert the model again, or "
            f"write its keys into {GENERATION} by the names they have there, and remove it"
        )
    newer = files.read_json(path, WHAT, MAX_BYTES) if path.exists() else {}
    if is_gguf(folder):
        newer = read_generation(folder, unsaid=unsaid)
    if (folder / CONFIG).exists() and not (folder / "config.yaml").exists():
        keys = files.read_json(folder / CONFIG, WHAT, MAX_BYTES)
        if path.exists():
            # The old place of all this counts only for ids once there is the new one.
            keys = {key: value for key, value in keys.items() if key in (*IDS, *MODEL)}
    else:
        keys = _objective(folder / "config.yaml")
        if "id2label" in keys:
            newer.pop("problem_type", None)  # the classes that a run is trained for exclude others
    keys |= {key: value for key, value in newer.items() if value is not None}
    values, odd = _read(keys)
    return GenerationConfig(**values), (*_dropped(keys, newer), *odd)


def for_task(config: GenerationConfig, task: str) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Return (what a folder says of one of its tasks, keys of the task that are not followed).

    The keys of the task win, as in the pipelines of transformers 4.
    """
    keys = json.loads(dict(config.task_specific_params)[task])
    about, general = to_hub(config)
    own = {key: value for key, value in keys.items() if value is not None}
    values, odd = _read(general | {"prefix": about.get("prefix")} | own)
    return replace(config, **values), (*_dropped(own, own), *odd)


def _dropped(keys: dict[str, Any], newer: dict[str, Any]) -> list[str]:
    """Return "key=value" of what is not followed, of all keys; unknown ones only of `newer`."""
    known = {*KEYS, *UNSUPPORTED, *NO_EFFECT, *MODEL, *SPEECH, "label2id"}
    found = [key for key in keys if key in UNSUPPORTED or (key in newer and key not in known)]
    if isinstance(keys.get("dola_layers"), list):  # of which only the two halves are known here
        found.append("dola_layers")
    found = [key for key in found if keys[key] not in (None, False, [], OFF.get(key))]
    return [f"{key}={_short(keys[key])}" for key in found]


def write_generation_config(folder: Path, config: GenerationConfig) -> None:
    """Write what is given as generation_config.json of one of our folders, labels included."""
    about, keys = to_hub(config)
    keys |= {key: about[key] for key in MODEL if key in about}
    if keys:
        files.write_json(folder / GENERATION, keys)


def to_hub(config: GenerationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (keys of config.json, generation_config.json) that say the same."""
    values = {
        name: one.metadata["write"](getattr(config, name))
        for name, one in KEYS.items()
        if getattr(config, name) not in (None, ())
    }
    about: dict[str, Any] = {key: values[key] for key in IDS if key in values}
    if config.labels:
        about["id2label"] = {str(i): label for i, label in enumerate(config.labels)}
        about["label2id"] = {label: i for i, label in enumerate(config.labels)}
    if config.problem_type is not None:
        about["problem_type"] = config.problem_type
    if config.prefix:
        about["prefix"] = config.prefix
    if config.task_specific_params:
        tasks = {task: json.loads(keys) for task, keys in config.task_specific_params}
        about["task_specific_params"] = tasks
    return about, values | {key: json.loads(value) for key, value in config.speech}


def _objective(path: Path) -> dict[str, Any]:
    """Return what a run's config says, as the keys of a Hugging Face folder."""
    objective = (settings_yaml.read_yaml(path).get("objective") or {}) if path.exists() else {}
    keys: dict[str, Any] = {}
    if objective.get("start") is not None:
        keys["decoder_start_token_id"] = objective["start"]
    if objective.get("labels"):
        keys["id2label"] = {str(i): label for i, label in enumerate(objective["labels"])}
    return keys


def _read(keys: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return (fields of a GenerationConfig, "key=value (reason)" of what can't be)."""
    values: dict[str, Any] = {}
    odd: list[str] = []
    own = {key: json.dumps(keys[key]) for key in SPEECH if keys.get(key) is not None}
    values |= {"speech": tuple(own.items())} if own else {}
    readers = {key: one.metadata["read"] for key, one in KEYS.items()}
    readers |= dict(zip(MODEL, (_labels, _problem, _prefix, _tasks), strict=True))
    for key, value in keys.items():
        if (
            key not in readers
            or value is None
            or (key == "dola_layers" and isinstance(value, list))
        ):
            continue
        try:
            values["labels" if key == "id2label" else key] = readers[key](value)
        except (ValueError, TypeError) as error:
            odd.append(f"{key}={_short(value)} ({error})")
    for least, most in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
        few, many = values.get(least), values.get(most)
        if few is not None and many is not None and few > many:
            odd.append(f"{least}={values.pop(least)} (it exceeds {most}={many})")
    return values, odd


def _labels(names: Any) -> tuple[str, ...]:
    wanted = [str(i) for i in range(len(names))] if isinstance(names, dict) else None
    if wanted is None or sorted(names, key=str) != sorted(wanted):
        raise ValueError("it does not name classes 0, 1, 2, ...")
    labels = tuple(str(names[key]) for key in wanted)
    # What transformers calls classes that nobody has named.
    return () if labels == tuple(f"LABEL_{i}" for i in range(len(labels))) else labels


def _problem(value: Any) -> str:
    if value not in get_args(ProblemType):
        raise ValueError(f"it wants one of {', '.join(get_args(ProblemType))}")
    return value


def _prefix(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it wants a text")
    return value


def _tasks(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(keys, dict) for keys in value.values()):
        raise ValueError("it wants the keys of each task")
    return tuple((task, json.dumps(keys, sort_keys=True)) for task, keys in value.items())
