"""`jaxgen quickstart`."""

from __future__ import annotations

from jaxgen import files, terminal
from jaxgen.cli import arguments, exits, paths, start
from jaxgen.cli.arguments import Out, Overrides
from jaxgen.run.signals import StopRequest


def quickstart(*overrides: Overrides, out: Out = None) -> None:
    """Train a small model on Python's own documentation, and show what it learned.

    Takes minutes on two cores and downloads nothing. It trains a tokenizer and a
    model, reports bits per byte of unseen text, draws the loss and completes
    prompts. All is written to the run folder, runs/quickstart unless --out names
    another. Ctrl-C saves and stops; the same command goes on from there.

    For example:
        jaxgen quickstart
        jaxgen quickstart --out runs/second train.steps=100 model.layers=2
    """
    arguments.check_overrides(overrides)
    folder = files.to_path(out) if out else paths.RUNS / "quickstart"
    cache = paths.cache()
    terminal.say(f"training the quickstart in {folder}")
    from jaxgen.report import quickstart as first

    with exits.in_folder(folder), StopRequest() as stop:
        start.prepare_jax(cache)
        first.quickstart(folder, overrides, cache=cache, stop=stop)
