"""`jaxgen init`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen.cli import paths, start
from jaxgen.errors import ConfigError
from jaxgen.pretrained import sources

Task = Literal["text", "chat", "pairs", "classes", "preferences", "fine-tune"]
PIECES = 290  # of the samples below, which are small
MANY = 1000  # pieces that any text of some size has
MODEL = "openai-community/gpt2"  # to fine-tune, unless another is named
# What a task has beside the sizes: sections of the config, a record, and how to ask the model.
TASKS: dict[str, dict[str, Any]] = {
    "text": {},
    "chat": {"objective": {"name": "chat"}},
    "pairs": {
        "model": {"topology": "encoder_decoder"},
        "objective": {"name": "pairs"},
        "data": {"sides": ["source", "target"]},
    },
    "classes": {
        "model": {"topology": "encoder", "head": "classes", "classes": 2},
        "objective": {"name": "classes"},
        "data": {"sides": ["text", "label"]},
    },
    "preferences": {"objective": {"name": "preferences"}, "preference": {"beta": 0.1}},
}
WANTED = {
    "chat": "messages or conversations; or name the field, data.field=KEY",
    "pairs": "prompt and completion, or source and target; or name the two, data.sides=[A,B]",
    "classes": "text and label; or name the two, data.sides=[A,B]",
    "preferences": "chosen and rejected, with a prompt or with what they share as one",
    "fine-tune": "text, messages, or prompt and completion; or name the field, data.field=KEY",
}
ABOUT = {
    "text": ("any text files or folders", "generate {} --prompt 'Once'"),
    "chat": ("a chat a line, system and more turns if you like", "chat {}"),
    "pairs": ("a source and its target a line", "translate {} 'a text'"),
    "classes": ("a text and its class a line", "classify {} 'a text'"),
    "preferences": ("a prompt a line, with a chosen and a rejected completion", "chat {}"),
    "fine-tune": ("any text files or folders", "generate {} --prompt 'Once'"),
}


def init(
    task: Annotated[Task, Parameter(help="what to train for")] = "text",
    /,
    *files: Annotated[
        str,
        Parameter(help="your text or records, by default a sample; SECTION.KEY=VALUE: a key"),
    ],
    out: Annotated[Path, Parameter(help="config to write")] = Path("my.yaml"),
    model: Annotated[
        str | None,
        Parameter(help="a model to go on with, for any task but text: a folder, or ORG/NAME"),
    ] = None,
) -> None:
    """Write a commented config for a task, to be trained as it is or edited.

    text: a decoder that goes on with text. chat, pairs, classes, preferences: from
    .jsonl files of records, whose first one says what their fields are called. fine-tune: text,
    pairs or chats for a model in a Hugging Face folder or a run. Sizes are chosen
    for your files and this machine, as `jaxgen train FILE` does. Without files the
    config names a small sample that is written beside it, to show how records look;
    text and fine-tune take the documentation that ships with Python.

    For example:
        jaxgen init                            then: jaxgen train my.yaml
        jaxgen init chat talks.jsonl --out talks.yaml
        jaxgen init fine-tune essays/ --model openai-community/gpt2
        jaxgen init text notes/ data.on_bad_record=skip
    """
    if out.suffix not in paths.SUFFIXES:
        raise ConfigError(f"--out {out} must end with .yaml")
    if model is not None and task == "text":
        raise ConfigError(f"--model {model} is for fine-tune; `jaxgen init fine-tune --model ...`")
    names = [word for word in files if "=" not in word or Path(word).exists()]
    overrides = [word for word in files if word not in names]
    sample = out.with_suffix(".jsonl") if not names and task in SAMPLES else None
    for path in (out, sample):
        if path is not None and path.exists():
            raise ConfigError(f"{path} exists; remove it, or give another --out")
    start.prepare_jax(paths.cache())
    from jaxgen import files as ground

    if sample is not None:
        records = list(SAMPLES[task]())
        ground.write(sample, "".join(json.dumps(record) + "\n" for record in records))
        names = [os.path.relpath(sample)]
        print(f"wrote {sample}: {len(records)} records that show the format")
    kind, mapping = _mapping(task, names, model, overrides)
    ground.write(out, _header(kind, out, mapping) + commented(mapping))
    source = mapping.get("init_from")
    if source is not None and sources.hub_id(source) and not Path(source).exists():
        print(f"{source} is fetched when training begins (pip install 'jaxgen[hub]')")
    elif source is not None and source not in sources.PACKAGES and not Path(source).exists():
        print(f"{source} is not here yet")
    print(f"wrote {out}; train with `jaxgen train {out}`")


def _mapping(
    task: str, names: Sequence[str], model: str | None, overrides: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the task that the files are for, and its config."""
    from jaxgen import run
    from jaxgen import settings as sets
    from jaxgen.data.labels import labels_of
    from jaxgen.run import sizes

    tuned = task == "fine-tune" or model is not None
    task, fields = _read_as(task, names, overrides)
    mapping = _begun(names, (model or MODEL) if tuned else None)
    for section, keys in TASKS.get(task, {}).items():
        kept = {name: keys[name] for name in keys if not (tuned and name == "topology")}
        mapping[section] = {**mapping.get(section, {}), **kept}
    mapping["data"] = {**mapping["data"], **fields}
    talks = task in ("chat", "preferences")
    if talks and mapping.get("tokenizer") == {"kind": "bytes"}:  # which ends no turn
        mapping["tokenizer"] = {"kind": "bpe", "vocab_size": PIECES}
    if task in SHOWN:
        shown = {"examples": 2} if SHOWN[task] is None else {"prompts": SHOWN[task](names)}
        others = {k: v for k, v in mapping.get("sample", {}).items() if k != "prompts"}
        mapping["sample"] = others | shown
    mapping = sets.override(mapping, overrides)
    # A model that is to be downloaded yet says nothing of itself.
    there = tuned and Path(mapping["init_from"]).exists()
    known = {key: mapping[key] for key in mapping if there or key != "init_from"}
    settings = run.build_settings(known)
    own = mapping.get("tokenizer", {})
    if talks and own.get("kind") == "bpe" and own.get("vocab_size", MANY) < MANY:
        settings = _with_own_pieces(settings)
        mapping["tokenizer"] = {"kind": "bpe", "vocab_size": settings.tokenizer.vocab_size}
    if task == "classes":
        mapping["model"] = {**mapping["model"], "classes": len(labels_of(settings.data))}
        run.build_settings({**known, "model": mapping["model"]})
    if task == "text" and not tuned and names and not settings.sample.prompts:
        prompts = sizes.prompts(settings.data, settings.model.context)
        mapping["sample"] = {**mapping.get("sample", {}), "prompts": list(prompts)}
    return task, mapping


def _begun(names: Sequence[str], home: str | None) -> dict[str, Any]:
    """Return the config that a task begins with; home: of the model to go on with, or None."""
    from jaxgen.run import forecast, initial, sizes

    data = {"files": list(names)} if names else {"corpus": "python-docs"}
    if home is None and names:
        choice = sizes.choose(sizes.text_bytes(names), *forecast.this_machine())
        return {**choice.mapping, "data": data}
    mapping = {**_config("quickstart" if home is None else "finetune_gpt2"), "data": data}
    if home is not None:
        context = initial.context_within(Path(home), mapping["model"]["context"])
        mapping["model"] = {**mapping["model"], "context": context}
        mapping["init_from"] = home
    return mapping


def _read_as(
    task: str, names: Sequence[str], overrides: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the task, which fine-tune takes from the records, and the keys of `data` it needs.

    Raises ConfigError for records that lack its fields.
    """
    from jaxgen.data import records
    from jaxgen.data.settings import FIELD
    from jaxgen.data.sources import RECORDS, kind_of, sources

    named = [word for word in overrides if word.startswith(("data.sides", "data.field"))]
    if named or not names or task == "text":
        pairs = task == "fine-tune" and any("sides" in word for word in named)
        return "pairs" if pairs else task, {}
    path = sources(names, ())[0][0]
    record = records.first_record(path)
    own, kind = records.task_of(record), task
    if task == "fine-tune":
        if not record or FIELD in record:
            return task, {}
        kind = "chat" if own == "chat" else "pairs"
    fields = records.keys_for(kind, record)
    if fields is None:
        if kind_of(path) not in RECORDS:
            raise ConfigError(f"{path} is plain text, but {task} needs records; give .jsonl")
        has = ", ".join(map(repr, list(record)[:8])) or "no record"
        other = f"; they look like {own}: `jaxgen init {own} {path}`" if own else ""
        raise ConfigError(f"{path} has {has}, but {task} needs {WANTED[task]}{other}")
    return kind, fields


def _with_own_pieces(settings: Any) -> Any:
    """Return the settings with as many pieces as their small text has."""
    from jaxgen.run import inputs, sizes
    from jaxgen.tokens.pieces import VocabularySizeError

    for _ in range(2):  # too few at first, then perhaps too many
        try:
            inputs.make_tokenizer(settings)
        except VocabularySizeError as error:
            settings = sizes.with_pieces(settings, error.works)
    return settings


def _config(name: str) -> Mapping[str, Any]:
    from jaxgen import settings_yaml

    return settings_yaml.read_yaml(paths.config(name))


def commented(mapping: Mapping[str, Any]) -> str:
    """Return a config as YAML in which each key is explained."""
    from jaxgen import run, settings_yaml
    from jaxgen.settings import fields_help

    meanings = {key: text for key, _, _, text in fields_help(run.Settings)}

    def lines(values: Mapping[str, Any], above: str, indent: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield f"\n{indent}{key}:"
                yield from lines(value, f"{above}{key}.", f"{indent}  ")
            else:
                yield f"{indent}# {meanings[above + key]}"
                yield f"{indent}{settings_yaml.to_yaml({key: value}).strip()}"

    return "\n".join(lines(mapping, "", "")).lstrip("\n") + "\n"


def _header(task: str, out: Path, mapping: Mapping[str, Any]) -> str:
    what, ask = ABOUT[task]
    if task == "pairs" and "init_from" in mapping:
        ask = "generate {} --prompt 'a text'"
    example = f"\n# A record: {json.dumps(next(SAMPLES[task]()))}" if task in SAMPLES else ""
    return (
        f"# Train with `jaxgen train {out}`, then ask with `jaxgen "
        f"{ask.format(paths.new_run(out))}`.\n"
        f"# data.files: {what}.{example}\n"
        f"# What is not said keeps its default; `jaxgen train --keys` lists all keys.\n\n"
    )


def _chats() -> Iterator[dict[str, Any]]:
    for a, b in product(range(1, 12), repeat=2):
        yield {
            "messages": [
                {"role": "user", "content": f"What is {a} plus {b}?"},
                {"role": "assistant", "content": f"{a} plus {b} is {a + b}."},
            ]
        }


WORDS = ("cat", "dog", "hat", "mat", "red", "old")


def _pairs() -> Iterator[dict[str, Any]]:
    for words in product(WORDS, repeat=3):
        yield {"source": " ".join(words), "target": " ".join(reversed(words))}


def _classes() -> Iterator[dict[str, Any]]:
    words = (("fine", "good", "great", "lovely"), ("bad", "dull", "poor", "sad"))
    for label, choices in zip(("praise", "blame"), words, strict=True):
        for word, noun, more in product(choices, ("book", "film", "song", "meal"), ("", "very ")):
            yield {"text": f"a {more}{word} {noun}", "label": label}


def _preferences() -> Iterator[dict[str, Any]]:
    for a, b in product(range(1, 12), repeat=2):
        asked = [{"role": "user", "content": f"What is {a} plus {b}?"}]
        says = lambda number: [{"role": "assistant", "content": f"{number}."}]  # noqa: E731
        yield {"prompt": asked, "chosen": says(a + b), "rejected": says(a + b + 1)}


def _first_asked(names: Sequence[str]) -> list[str]:
    """Return what the first record of a file of preferences asks, none where it has no prompt."""
    from jaxgen.data import records
    from jaxgen.data.sources import sources

    prompt = records.first_record(sources(names, ())[0][0]).get("prompt") if names else None
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content")
    return [prompt] if isinstance(prompt, str) and prompt.strip() else []


# What a run of a task shows at validations: what its text asks (None), or these prompts.
SHOWN: dict[str, Any] = {"chat": None, "pairs": None, "preferences": _first_asked}
SAMPLES = {
    "chat": _chats,
    "pairs": _pairs,
    "classes": _classes,
    "preferences": _preferences,
}
