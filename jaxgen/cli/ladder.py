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

    One table: bytes on disk, memory, tokens a second for 1 and 8 rows, bits per
    byte and the change of perplexity, with intervals. Each rung is measured in a
    process of its own, on the same rows. OUT gets the rungs, ladder.json, and
    ladder.html, a page that needs no network; rungs that are there already, of
    the same recipe, are not made again.

    For example:
        jaxgen ladder runs/my --recipes int8,int4,int4-gptq --out ladder
        jaxgen ladder smollm2 --recipes int8,nf4 --out ladder --on mine.txt
    """
    from jaxgen.compress.recipe import read_recipe, split_recipes

    wanted = [read_recipe(word) for word in split_recipes(recipes)]
    names = [name for name, _ in wanted]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--recipes names {repeated} twice; name each once")
    if data and not any(recipe.calibrates for _, recipe in wanted):
        raise ConfigError(f"--data has no effect: none of {recipes} looks at a text; drop it")
    folder, which = paths.model(model, step)
    paths.check_folder(out)
    start.prepare_jax(paths.cache())
    from jaxgen.compress import ladder as page

    home = Path(out)
    with exits.in_folder(folder):
        report = _climb(folder, which, wanted, home, data, on, (rows, length, new_tokens))
    report["front"] = page.front(report["rungs"])
    files.write_json(home / "ladder.json", report)
    files.write(home / "ladder.html", page.html(report))
    print(page.text(report))
    print(f"wrote {home / 'ladder.json'} and {home / 'ladder.html'}")


def _climb(
    folder: Path,
    step: Any,
    wanted: list[tuple[str, Any]],
    home: Path,
    data: tuple[str, ...],
    on: tuple[str, ...],
    sizes: tuple[int, int, int],
) -> dict[str, Any]:
    """Return the report of a model and its rungs; sizes: rows, their length, tokens to decode."""
    from jaxgen.compress import measure, text
    from jaxgen.compress.folder import write_folder
    from jaxgen.text.loaded_model import open_model

    before = open_model(folder, step=step)
    label, texts = text.texts_of(folder, on, "valid")
    length = min(sizes[1], before.config.context)
    ids = text.token_rows(before, texts, sizes[0], length, label)
    widths, config = before.tokenizer.byte_lengths, before.config
    del before
    rungs = [("as it is", folder, step)]
    for name, recipe in wanted:
        rung = home / name.replace("/", "_")
        if not _is_made(rung, folder, recipe):
            terminal.say(f"{name}:")
            calibration = data if recipe.calibrates else ()
            write_folder(folder, step, name, recipe, rung, calibration, say=terminal.say)
        rungs.append((name, rung, None))
    found: list[dict[str, Any]] = []
    for name, rung, own in rungs:
        with terminal.waiting(f"measuring {name}"):
            measured = measure.measure_folder(rung, own, ids, min(sizes[2], config.context - 8))
        nll = measured.pop("nll")
        first = found[0]["nll"] if found else nll
        more = measure.compared(nll, first, ids, widths)
        size = measure.stored(rung, own)
        found.append({"name": name, "bytes": size, **measured, **more, "nll": nll})
    settings = {"text": label, "rows": len(ids), "length": length, "new_tokens": sizes[2]}
    rungs_of = [{k: v for k, v in one.items() if k != "nll"} for one in found]
    return {"model": str(folder), "settings": settings, "rungs": rungs_of}


def _is_made(rung: Path, source: Path, recipe: Any) -> bool:
    """Return whether a rung is there; ConfigError for a folder of something else."""
    from jaxgen import settings
    from jaxgen.compress.write import RECEIPT

    if not rung.exists():
        return False
    path = rung / RECEIPT
    receipt = files.read_json(path, "receipt", 64 << 20) if path.exists() else {}
    same = receipt.get("recipe") == settings.as_dict(recipe) | {"keep": list(recipe.keep)}
    if not same or receipt.get("source") != str(source):
        raise ConfigError(f"{rung} is of another recipe or model; remove it, or give another --out")
    return True
