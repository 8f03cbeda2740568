"""`jaxgen ladder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import Step, at_least
from jaxgen.cli.compress import Text
from jaxgen.cli.texts import Folder
from jaxgen.errors import ConfigError


def ladder(
    model: Folder,
    /,
    *,
    recipes: Annotated[
        str, Parameter(help="names or .yaml files with commas between them: int8,int4,int4-gptq")
    ],
    out: Annotated[str, Parameter(help="folder of the rungs and the report")],
    data: Text = (),
    on: Annotated[
        tuple[str, ...],
        Parameter(
            help="text to measure on: files or a corpus; a run's validation text by default",
            consume_multiple=True,
        ),
    ] = (),
    rows: Annotated[int, at_least(2), Parameter(help="rows of that text")] = 64,
    length: Annotated[int, at_least(2), Parameter(help="tokens of a row, at most")] = 256,
    new_tokens: Annotated[int, at_least(1), Parameter(help="decoded for each speed")] = 32,
    step: Step = None,
) -> None:
    """Compress a model by several recipes and show what each costs and gains.

    One table: MiB on disk, memory, tokens a second for 1 and 8 rows, bits per
    byte and the change of perplexity, with intervals; then quality, diversity,
    stability and speed as `jaxgen report` has them. Each rung is measured in a
    process of its own, on the same rows. OUT gets the rungs, ladder.json, and
    ladder.html, a page that needs no network; rungs that are there already, of
    the same recipe, are not made again.

    For example:
        jaxgen ladder runs/my --recipes int8,int4,int4-gptq --out ladder
        jaxgen ladder smollm2 --recipes int8,nf4 --out ladder --on mine.txt
    """
    from jaxgen.compress.recipe import read_recipe, split_recipes

    named = [read_recipe(word) for word in split_recipes(recipes)]
    names = [name for name, _ in named]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--recipes names {repeated} twice; name each once")
    if data and not any(recipe.calibrates for _, recipe in named):
        raise ConfigError(f"--data has no effect: none of {recipes} looks at a text; drop it")
    folder, which = paths.model(model, step)
    paths.check_folder(out)
    start.prepare_jax(paths.cache())
    from jaxgen.report import ladder as page
    from jaxgen.report import table

    home = Path(out)
    with exits.in_folder(folder):
        report = _climb(folder, which, named, home, data, on, (rows, length, new_tokens))
    report["front"] = page.front(report["rungs"])
    files.write_json(home / "ladder.json", report)
    files.write(home / "ladder.html", page.html(report))
    print(f"{page.text(report)}\n")
    table.show_all(report, terminal.console())
    print(f"wrote {home / 'ladder.json'} and {home / 'ladder.html'}")


def _climb(
    folder: Path,
    step: Any,
    named: list[tuple[str, Any]],
    home: Path,
    data: tuple[str, ...],
    on: tuple[str, ...],
    sizes: tuple[int, int, int],
) -> dict[str, Any]:
    """Return the report of a model and its rungs; sizes: rows, their length, tokens to decode."""
    from jaxgen.compress import text
    from jaxgen.compress.folder import is_written, write_folder
    from jaxgen.report import rungs as measured
    from jaxgen.report.make import HELD_OUT
    from jaxgen.text.loaded_model import open_model

    model = open_model(folder, step=step)
    label, texts = text.texts_of(folder, on, "valid")
    count, length, new_tokens = sizes[0], *measured.fitting(model.config, *sizes[1:])
    ids = text.token_rows(model, texts, count, length, label)
    rungs, missing = [("as it is", folder, step)], []
    for name, recipe in named:
        rung, calibration = home / name.replace("/", "_"), data if recipe.calibrates else ()
        rungs.append((name, rung, None))
        if not is_written(model, folder, recipe, rung, calibration):
            missing.append((name, recipe, rung, calibration))
    widths, rows, baseline = model.tokenizer.byte_lengths, [], None
    with measured.as_text(model, ids) as shard:
        known = {HELD_OUT: ("the true continuations", measured.true_axes(model, shard, new_tokens))}
        del model
        for job in missing:
            terminal.say(f"{job[0]}:")
            write_folder(folder, step, *job, say=terminal.say)
        for name, rung, rung_step in rungs:
            with terminal.waiting(f"measuring {name}"):
                job = rung, rung_step, shard, new_tokens, (folder, step)
                figures = measured.measure_folder(*job)
            nll, axes = figures.pop("nll"), figures.pop("axes")
            baseline = baseline or nll
            figures |= measured.compared(nll, baseline, ids, widths)
            size = measured.stored(rung, rung_step)
            rows.append({"name": name, "bytes": size, **figures})
            known[name] = (f"{size / 2**20:,.1f} MiB", axes)
    settings = {"text": label, "rows": len(ids), "length": length, "new_tokens": new_tokens}
    generators = {
        name: {"about": about, "parameters": None, "metrics": axes}
        for name, (about, axes) in known.items()
    }
    return {"model": str(folder), "settings": settings, "rungs": rows, "generators": generators}
