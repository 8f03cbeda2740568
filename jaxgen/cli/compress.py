"""`jaxgen compress`."""

from __future__ import annotations

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
        if out is not None or data:
            raise ConfigError("--out and --data have no effect with --recipe list; drop them")
        terminal.print_rows([(name, _keys(preset)) for name, preset in PRESETS.items()])
        return
    name, built = read_recipe(recipe)
    if out is None:
        raise ConfigError(f"--out is missing: the folder to write, as in --out {name}")
    folder, which = paths.model(model, step)
    paths.check_folder(out)
    start.prepare_jax(paths.cache())
    from jaxgen.compress.folder import write_folder
    from jaxgen.pretrained.model import check_new

    with exits.in_folder(folder):
        check_new(Path(out))
        receipt = write_folder(folder, which, name, built, Path(out), data, say=terminal.say)
    terminal.print_rows(_rows(out, receipt))


def _keys(recipe: Any) -> str:
    from jaxgen import settings

    defaults = {key: default for key, _, default, _ in settings.fields_help(type(recipe))}
    keys = settings.as_dict(recipe).items()
    return ", ".join(f"{key}={value}" for key, value in keys if value != defaults[key])


def _rows(out: str, receipt: dict[str, Any]) -> list[tuple[str, str]]:
    from jaxgen.compress.write import mean_errors

    matrices, (size, stored) = receipt["matrices"], receipt["bytes"]
    worst = max(matrices, key=lambda row: row["error"], default=None)
    rows = [
        ("wrote", out),
        ("weights", f"{files.human(stored)}, were {files.human(size)} ({size / stored:.2f} times)"),
        ("matrices", f"{len(matrices)}"),
    ]
    if worst is not None:
        mean = mean_errors(matrices)
        text = f"{mean['error']:.3e} of the outputs' energy; nearest: {mean['nearest']:.3e}"
        where = f"layer {worst['layer']}, {worst['path']}: {worst['error']:.3e}"
        rows += [("mean error", text), ("largest", where)]
    return rows
