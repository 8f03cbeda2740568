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

Task = Literal["text", "chat", "pairs", "classes", "fine-tune"]
PIECES = 290  # of the samples below, which are small
HOME = "models/gpt2"  # where a model to fine-tune is, unless another is named
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
}
ABOUT = {
    "text": ("any text files or folders", "generate {} --prompt 'Once'"),
    "chat": ("a chat a line, system and more turns if you like", "chat {}"),
    "pairs": ("a source and its target a line", "translate {} 'a text'"),
    "classes": ("a text and its class a line", "classify {} 'a text'"),
    "fine-tune": ("any text files or folders", "generate {} --prompt 'Once'"),
}


def init(
    task: Annotated[Task, Parameter(help="what to train for")] = "text",
    /,
    *files: Annotated[str, Parameter(help="your text or records; by default a sample is written")],
    out: Annotated[Path, Parameter(help="config to write")] = Path("my.yaml"),
    model: Annotated[
        str | None, Parameter(help="fine-tune: the folder of the model to go on with")
    ] = None,
) -> None:
    """Write a commented config for a task, to be trained as it is or edited.

    text: a decoder that goes on with text. chat, pairs, classes: from .jsonl files
    of records. fine-tune: text for a model in a Hugging Face folder or a run. Sizes
    are chosen for your files and this machine, as `jaxgen train FILE` does. Without
    files the config names a small sample that is written beside it, to show how
    records look; text and fine-tune take the documentation that ships with Python.

    For example:
        jaxgen init                            then: jaxgen train my.yaml
        jaxgen init chat talks.jsonl --out talks.yaml
        jaxgen init fine-tune essays/ --model models/gpt2
    """
    if out.suffix not in paths.SUFFIXES:
        raise ConfigError(f"--out {out} must end with .yaml")
    if model is not None and task != "fine-tune":
        raise ConfigError(f"--model {model} is for fine-tune; `jaxgen init fine-tune --model ...`")
    sample = out.with_suffix(".jsonl") if not files and task in SAMPLES else None
    for path in (out, sample):
        if path is not None and path.exists():
            raise ConfigError(f"{path} exists; remove it, or give another --out")
    start.prepare_jax(paths.cache())
    from jaxgen import files as ground

    names = list(files)
    if sample is not None:
        records = list(SAMPLES[task]())
        ground.write(sample, "".join(json.dumps(record) + "\n" for record in records))
        names = [os.path.relpath(sample)]
        print(f"wrote {sample}: {len(records)} records that show the format")
    mapping = _mapping(task, names, model)
    ground.write(out, _header(task, out) + commented(mapping))
    if task == "fine-tune" and not Path(mapping["init_from"]).is_dir():
        print(f"{mapping['init_from']} is not here yet: `hf download gpt2 --local-dir {HOME}`")
    print(f"wrote {out}; train with `jaxgen train {out}`")


def _mapping(task: str, names: Sequence[str], model: str | None) -> dict[str, Any]:
    from jaxgen import run
    from jaxgen.data.labels import labels_of
    from jaxgen.run import forecast, sizes

    if task == "fine-tune" or not names:
        mapping = dict(_config("finetune_gpt2" if task == "fine-tune" else "quickstart"))
        text = {"files": list(names)} if names else {"corpus": "python-docs"}
        mapping["data"] = text
        if task == "fine-tune":
            mapping["init_from"] = model or HOME
        return mapping
    text = {"files": list(names)}
    mapping = dict(sizes.choose(sizes.text_bytes(names), *forecast.this_machine()).mapping)
    for section, keys in TASKS[task].items():
        mapping[section] = {**mapping.get(section, {}), **keys}
    mapping["data"] = {**text, **mapping.get("data", {})}
    if task == "chat" and mapping["tokenizer"]["kind"] == "bytes":  # which ends no turn
        mapping["tokenizer"] = {"kind": "bpe", "vocab_size": PIECES}
    if task == "classes":
        classes = len(labels_of(run.build_settings(mapping).data))
        mapping["model"] = {**mapping["model"], "classes": classes}
    if task == "text":
        mapping["sample"] = {"prompts": list(sizes.prompts(names))}
    run.build_settings(mapping)
    return mapping


def _config(name: str) -> Mapping[str, Any]:
    from jaxgen import settings_yaml

    return settings_yaml.read_yaml(paths.config(name))


def commented(mapping: Mapping[str, Any]) -> str:
    """Return a config as YAML in which each key is told."""
    from jaxgen import run, settings_yaml
    from jaxgen.settings import fields_help

    told = {key: text for key, _, _, text in fields_help(run.Settings)}

    def lines(values: Mapping[str, Any], above: str, indent: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield f"\n{indent}{key}:"
                yield from lines(value, f"{above}{key}.", f"{indent}  ")
            else:
                yield f"{indent}# {told[above + key]}"
                yield f"{indent}{settings_yaml.to_yaml({key: value}).strip()}"

    return "\n".join(lines(mapping, "", "")).lstrip("\n") + "\n"


def _header(task: str, out: Path) -> str:
    what, ask = ABOUT[task]
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


SAMPLES = {"chat": _chats, "pairs": _pairs, "classes": _classes}
