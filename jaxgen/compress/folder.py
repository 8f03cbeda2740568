"""A model's folder by a recipe: its text read, its layers compressed, its assets beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files, tree
from jaxgen.compress import layerwise, shrink
from jaxgen.compress.recipe import Recipe
from jaxgen.compress.text import texts_of, token_rows
from jaxgen.compress.write import Say, assemble, compress_layers, differing, origin
from jaxgen.errors import ConfigError
from jaxgen.pretrained import assets, model
from jaxgen.store.steps import Step
from jaxgen.text.loaded_model import LoadedModel, open_model


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
    if data and not recipe.calibrates:
        raise ConfigError(f"--data has no effect: recipe {name} looks at no text; drop it")
    rows = _calibration(before, folder, recipe, data, say)
    size, source = tree.nbytes(params), origin(params, config, recipe, rows)
    source["calibration"] = {} if rows is None else {"rows": len(rows), "length": rows.shape[1]}
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
    source_assets, draft = assets.read_assets(folder), parts / "model"
    shutil.rmtree(draft, ignore_errors=True)  # of a kill while it was written
    model.save(
        *(draft, config, tree.unflatten(flat)),
        tokenizer=source_assets.tokenizer,
        generation_config=source_assets.generation_config,
        chat_template=source_assets.chat_template,
    )
    stored = (draft / model.WEIGHTS).stat().st_size
    receipt = {"name": name, "source": str(folder), "bytes": [size, stored], **source, **receipt}
    files.write_json(draft / assets.RECEIPT, receipt)
    with files.refusals(out):
        os.replace(draft, out)
    shutil.rmtree(parts)
    return receipt


def is_written(
    model: LoadedModel, folder: Path, recipe: Recipe, out: Path, data: Sequence[str]
) -> bool:
    """Return whether `write_folder` has written a model; ConfigError for a folder of another."""
    if not out.exists():
        return False
    expected = origin(model.params, model.config, recipe, _calibration(model, folder, recipe, data))
    receipt = out / assets.RECEIPT
    names = differing(receipt, expected) if receipt.exists() else [*expected]
    if names:
        raise ConfigError(
            f"{out} is of another recipe or model, or text (it differs in {', '.join(names)}); "
            f"remove it, or give another --out"
        )
    return True


def _calibration(
    model: LoadedModel,
    folder: Path,
    recipe: Recipe,
    data: Sequence[str],
    say: Say = lambda line: None,
) -> np.ndarray | None:
    """Return the rows of text that a recipe looks at; None for one that looks at none."""
    if not recipe.calibrates:
        return None
    label, texts = texts_of(folder, data, "train")
    length = min(recipe.length, model.config.context)
    rows = token_rows(model, texts, recipe.rows, length, label)
    say(f"calibration: {len(rows)} rows of {length} tokens of {label}")
    return rows
