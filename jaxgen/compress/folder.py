"""A model's folder by a recipe: its text read, its layers compressed, its assets beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgen import files, tree
from jaxgen.compress import layerwise, shrink
from jaxgen.compress.recipe import Recipe
from jaxgen.compress.text import texts_of, token_rows
from jaxgen.compress.write import RECEIPT, Say, assemble, compress_layers
from jaxgen.errors import ConfigError
from jaxgen.pretrained import assets, model
from jaxgen.store.steps import Step
from jaxgen.text.loaded_model import open_model


def write_folder(
    folder: Path,
    step: Step,
    name: str,
    recipe: Recipe,
    out: Path,
    data: Sequence[str],
    *,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Write a model by a recipe as a new folder, which appears whole; return its receipt.

    name: of the recipe; data: words that name a calibration text (`texts_of`). Raises as
    `compress_layers` and `texts_of` do, ConfigError for a text that the recipe does not look at.
    """
    before = open_model(folder, step=step)
    config, params = before.config, before.params
    layerwise.check_model(config, params)
    shrink.check(config, recipe)
    rows = None
    if recipe.calibrates:
        label, texts = texts_of(folder, data, "train")
        length = min(recipe.length, config.context)
        rows = token_rows(before, texts, recipe.rows, length, label)
        say(f"calibration: {len(rows)} rows of {length} tokens of {label}")
    elif data:
        raise ConfigError(f"--data has no effect: recipe {name} looks at no text; drop it")
    size = tree.nbytes(params)
    if recipe.shrinks:
        assert rows is not None
        measured = shrink.importance(params, config, rows)
        config, params = shrink.shrink(params, config, recipe, measured)
        say(f"kept: {config.layers} layers of {config.heads} heads and {config.F} channels")
    rows, flat = rows if recipe.reads_inputs else None, tree.flatten(params)
    parts = out.with_name(f"{out.name}.parts")
    receipt = compress_layers(params, config, recipe, rows, parts, say=say)
    del before, params  # so that each weight can go when its part has taken its place
    assemble(flat, config, recipe, parts)
    own, draft = assets.read_assets(folder), parts / "model"
    shutil.rmtree(draft, ignore_errors=True)  # of a kill while it was written
    model.save(
        *(draft, config, tree.unflatten(flat)),
        tokenizer=own.tokenizer,
        generation_config=own.generation_config,
        chat_template=own.chat_template,
    )
    stored = (draft / model.WEIGHTS).stat().st_size
    receipt = {"name": name, "source": str(folder), "bytes": [size, stored], **receipt}
    files.write_json(draft / RECEIPT, receipt)
    with files.refusals(out):
        os.replace(draft, out)
    shutil.rmtree(parts)
    return receipt
