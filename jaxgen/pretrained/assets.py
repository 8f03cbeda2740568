"""What a model's folder holds beside the model: tokenizer, generation config and chat template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxgen.errors import CheckpointError
from jaxgen.pretrained import hub_read
from jaxgen.pretrained.chat_template import (
    ChatTemplate,
    has_chat_template,
    read_chat_template,
    write_chat_template,
)
from jaxgen.pretrained.generation_config import (
    GenerationConfig,
    read_generation_config,
    write_generation_config,
)
from jaxgen.store.steps import run_and_step
from jaxgen.tokens import Tokenizer, marian
from jaxgen.tokens import load as load_tokenizer

OURS = "tokenizer"  # a folder in our own
HUB = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


class ModelAssets(NamedTuple):
    """Tokenizer, generation config and chat template of a folder; None: it has none.

    dropped: keys of its generation config that are not followed, with their values.
    """

    tokenizer: Tokenizer | None
    generation_config: GenerationConfig
    chat_template: ChatTemplate | None
    dropped: tuple[str, ...]


def read_assets(folder: Path) -> ModelAssets:
    """Return the assets of a run, a saved or a Hugging Face folder.

    Raises CheckpointError if one of them is damaged.
    """
    told, dropped = read_generation_config(folder)
    return ModelAssets(
        read_tokenizer(folder) if has_tokenizer(folder) else None,
        told,
        read_chat_template(folder) if has_chat_template(folder) else None,
        dropped,
    )


def copy_assets(folder: Path, run: Path) -> None:
    """Write the generation config and the chat template of a folder into a run."""
    folder, _ = run_and_step(folder)
    write_generation_config(run, read_generation_config(folder)[0])
    if has_chat_template(folder):
        write_chat_template(run, read_chat_template(folder))


def has_tokenizer(folder: Path) -> bool:
    """Return whether `read_tokenizer` has something to read."""
    folder, _ = run_and_step(folder)
    if hub_read.is_hub(folder):
        return marian.is_marian(folder) or any((folder / name).exists() for name in HUB)
    return (folder / OURS).is_dir()


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder; CheckpointError if there is none, or it does not fit."""
    folder, _ = run_and_step(folder)
    if hub_read.is_hub(folder):
        return _hub_tokenizer(folder)
    if not (folder / OURS).is_dir():
        raise CheckpointError(f"{folder} has no tokenizer/; text needs one, token ids do not")
    return load_tokenizer(folder / OURS)


def _hub_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder, which must fit its model.

    bos is what the tokenizer itself puts before a text; eos and pad are those of
    generation_config.json or config.json, or what it puts after one.
    """
    path = next((folder / name for name in HUB if (folder / name).exists()), folder)
    if path == folder and not marian.is_marian(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer.json and no sentencepiece model; ids only"
        )
    tokenizer = marian.read(folder) if path == folder else load_tokenizer(path)
    _, config = hub_read.read_config(folder)
    if tokenizer.vocab_size > config.V:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} pieces, but the model knows {config.V}: they are "
            f"not of one model"
        )
    special = replace(tokenizer.special, **_special(folder, tokenizer))
    if special == tokenizer.special:
        return tokenizer
    model: bytes = tokenizer.model  # pyright: ignore[reportAttributeAccessIssue]
    return type(tokenizer)(model, special)  # pyright: ignore[reportCallIssue]


def _special(folder: Path, tokenizer: Tokenizer) -> dict[str, int | None]:
    told, _ = read_generation_config(folder)
    eos = next(iter(told.eos_token_id), None)
    named = {"bos": told.bos_token_id, "eos": eos, "pad": told.pad_token_id}
    found: dict[str, int | None] = {}
    for name, value in named.items():
        if value is None:
            continue
        if value >= tokenizer.vocab_size:
            raise CheckpointError(
                f"{folder}: {name}_token_id={value} is none of the tokenizer's "
                f"{tokenizer.vocab_size} ids"
            )
        found[name] = value
    around = getattr(tokenizer, "around", None)
    if around is None:  # sentencepiece: Llama and Gemma begin every text, T5 and Marian none
        if isinstance(tokenizer, marian.Marian):
            found["bos"] = None
        return found
    begin, end = around()
    found["bos"] = begin[0] if len(begin) == 1 else None
    if "eos" not in found and len(end) == 1:  # BERT ends what it reads, and says so only there
        found["eos"] = end[0]
    return found
