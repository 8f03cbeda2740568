"""`jaxgen compress`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import Step
from jaxgen.cli.texts import Folder
from jaxgen.errors import ConfigError

Text = Annotated[
    tuple[str, ...],
    Parameter(
        name="--data",
        help="calibration text: files, folders or globs, or a corpus as python-docs; a run's own "
        "by default",
        consume_multiple=True,
    ),
]


def compress(
    model: Folder,
    /,
    *,
    recipe: Annotated[
        str,
        Parameter(
            help="a name or a .yaml file; keys may follow, as in int4-gptq,group=64; list: all"
        ),
    ],
    out: Annotated[str | None, Parameter(help="the new folder to write")] = None,
    data: Text = (),
    step: Step = None,
) -> None:
    """Quantise or prune a model, layer by layer, into a folder that every verb opens.

    Rounding to nearest, GPTQ, AWQ and SmoothQuant; int8, int4 and nf4; zeros by
    magnitude, Wanda or SparseGPT. Methods that look at a layer's inputs need some
    text. compress.json in the folder says what each matrix lost, beside what
    plain rounding would have lost. Killed, the same command goes on with OUT.parts.

    For example:
        jaxgen compress smollm2 --recipe int8 --out small
        jaxgen compress runs/my --recipe int4-gptq --out small
        jaxgen compress models/llama --recipe my.yaml --out small --data texts/
        jaxgen compress smollm2 --recipe list
    """
    from jaxgen.compress.recipe import PRESETS, read_recipe

    if recipe == "list":
        terminal.print_rows([(name, _about(one)) for name, one in PRESETS.items()])
        return
    name, wanted = read_recipe(recipe)
    if out is None:
        raise ConfigError(f"--out is missing: the folder to write, as in --out {name}")
    folder, which = paths.model(model, step)
    start.prepare_jax(paths.cache())
    from jaxgen.pretrained import model as models

    with exits.in_folder(folder):
        models.check_new(Path(out))
        rows = _write(folder, which, name, wanted, Path(out), data)
    terminal.print_rows(rows)


def _about(recipe: Any) -> str:
    from jaxgen import settings

    plain = settings.as_dict(type(recipe)(tables="int8"))
    given = settings.as_dict(recipe)
    shown = {k: v for k, v in given.items() if v != plain[k] or k == "tables"}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _write(
    folder: Path, step: Any, name: str, recipe: Any, out: Path, data: tuple[str, ...]
) -> list[tuple[str, str]]:
    from jaxgen import tree
    from jaxgen.compress import layerwise, text, write
    from jaxgen.pretrained import assets
    from jaxgen.pretrained import model as models
    from jaxgen.text.loaded_model import open_model

    before = open_model(folder, step=step)
    config, params = before.config, before.params
    layerwise.check_model(config, params)
    rows = None
    if recipe.calibrates:
        label, texts = _texts(folder, data)
        length = min(recipe.length, config.context)
        rows = text.token_rows(before, texts, recipe.rows, length, label)
        terminal.say(f"calibration: {len(rows)} rows of {length} tokens of {label}")
    elif data:
        raise ConfigError(f"--data has no effect: recipe {name} looks at no text; drop it")
    size, flat = tree.nbytes(params), tree.flatten(params)
    parts = out.with_name(f"{out.name}.parts")
    receipt = write.compress_layers(params, config, recipe, rows, parts, say=terminal.say)
    del before, params  # so that each weight can go when its part has taken its place
    write.assemble(flat, config, recipe, parts)
    own, draft = assets.read_assets(folder), parts / "model"
    shutil.rmtree(draft, ignore_errors=True)  # of a kill while it was written
    models.save(
        *(draft, config, tree.unflatten(flat)),
        tokenizer=own.tokenizer,
        generation_config=own.generation_config,
        chat_template=own.chat_template,
    )
    stored = (draft / models.WEIGHTS).stat().st_size
    receipt = {"name": name, "source": str(folder), "bytes": [size, stored], **receipt}
    files.write_json(draft / write.RECEIPT, receipt)
    with files.refusals(out):
        os.replace(draft, out)
    shutil.rmtree(parts)
    return _rows(out, size, stored, receipt)


def _rows(out: Path, size: int, stored: int, receipt: dict[str, Any]) -> list[tuple[str, str]]:
    matrices = receipt["matrices"]
    mean = {
        k: sum(row[k] for row in matrices) / max(len(matrices), 1) for k in ("error", "nearest")
    }
    worst = max(matrices, key=lambda row: row["error"], default=None)
    rows = [
        ("wrote", str(out)),
        ("weights", f"{files.human(stored)}, were {files.human(size)} ({size / stored:.2f} times)"),
        ("matrices", f"{len(matrices)}"),
    ]
    if worst is not None:
        about = f"{mean['error']:.3e} of the outputs' energy; nearest: {mean['nearest']:.3e}"
        where = f"layer {worst['layer']}, {worst['path']}: {worst['error']:.3e}"
        rows += [("mean error", about), ("largest", where)]
    return rows


def _texts(folder: Path, data: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """Return (name, texts) of what is given, or of the text that a run was trained on."""
    from jaxgen.data import reading
    from jaxgen.data.corpora import CORPORA
    from jaxgen.data.settings import DataSettings
    from jaxgen.run.folder import CHECKPOINTS, existing_settings
    from jaxgen.settings import build

    if not data and not (folder / CHECKPOINTS).is_dir():
        raise ConfigError("--data is missing: the recipe looks at the inputs of layers; give text")
    if not data:
        name, settings = f"the text of {folder}", existing_settings(folder).data
    elif len(data) == 1 and data[0] in CORPORA["text"]:
        name, settings = data[0], build(DataSettings, {"corpus": data[0]})
    else:
        name, settings = " ".join(data), DataSettings(files=data)
    return name, (t for one in reading.documents(settings) for t in one.texts)
