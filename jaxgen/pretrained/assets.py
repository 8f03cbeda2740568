"""What a model's folder holds beside the model: tokenizer, generation config and chat template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxgen import files
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
from jaxgen.pretrained.hub_tokenizer import has_hub_tokenizer, read_hub_tokenizer
from jaxgen.pretrained.pooling import copy_pooling
from jaxgen.pretrained.preprocessor import copy_preprocessor
from jaxgen.store.steps import run_and_step
from jaxgen.tokens import Tokenizer
from jaxgen.tokens import load as load_tokenizer

OURS = "tokenizer"  # a folder in our own
RECEIPT, MAX_RECEIPT = "compress.json", 64 << 20  # of `jaxgen compress`; bytes


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
    generation_config, dropped = read_generation_config(folder)
    return ModelAssets(
        read_tokenizer(folder) if has_tokenizer(folder) else None,
        generation_config,
        read_chat_template(folder) if has_chat_template(folder) else None,
        dropped,
    )


def copy_assets(folder: Path, run: Path) -> None:
    """Write generation config, chat template and pooling of a folder into a run."""
    folder, _ = run_and_step(folder)
    told = read_generation_config(folder)[0]
    # A run reads its texts as they are: what another model wants before them is not its own.
    write_generation_config(run, replace(told, prefix=None, task_specific_params=()))
    copy_pooling(folder, run)
    if has_chat_template(folder):
        write_chat_template(run, read_chat_template(folder))


def source_note(folder: Path) -> str:
    """Return words on the model that `jaxgen compress` made a folder of; "" for other folders."""
    if not (folder / RECEIPT).is_file():
        return ""
    receipt = files.read_json(folder / RECEIPT, "receipt", MAX_RECEIPT)
    return f" (it was compressed from {receipt.get('source')})"


def copy_beside(folder: Path, target: Path) -> None:
    """Copy what a folder says of its pooling, and of the sound it reads, if it does."""
    copy_pooling(folder, target)
    copy_preprocessor(folder, target)


def has_tokenizer(folder: Path) -> bool:
    """Return whether `read_tokenizer` has something to read."""
    folder, _ = run_and_step(folder)
    if hub_read.is_hub(folder):
        return has_hub_tokenizer(folder)
    return (folder / OURS).is_dir()


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder; CheckpointError if there is none, or it does not fit."""
    folder, _ = run_and_step(folder)
    if hub_read.is_hub(folder):
        return read_hub_tokenizer(folder)
    if not (folder / OURS).is_dir():
        raise CheckpointError(f"{folder} has no tokenizer/; text needs one, token ids do not")
    return load_tokenizer(folder / OURS)
