"""`jaxgen merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen.cli import convert, paths
from jaxgen.cli.arguments import Step
from jaxgen.errors import ConfigError


def merge(
    source: Annotated[str, Parameter(help="a model, or an adapter that names its base")],
    /,
    *words: Annotated[str, Parameter(name="WORD", help="adapters, PATH[=SCALE]; at last OUT")],
    to: Annotated[
        Literal["hf", "jaxgen", "gguf"] | None,
        Parameter(help="the layout to write; by default that of the model beneath"),
    ] = None,
    step: Step = None,
) -> None:
    """Write a model whose adapters have become part of its weights.

    It computes what the model did with them, and is a model like any other:
    rounded weights become numbers again.

    For example:
        jaxgen merge models/llama adapters/mine merged/
        jaxgen merge models/llama adapters/mine=0.5 adapters/other merged/ --to jaxgen
        jaxgen merge runs/tuned merged/
    """
    if not words:
        raise ConfigError(f"OUT is missing: `jaxgen merge {source} OUT`")
    from jaxgen.pretrained.adapted import source_of

    *adapters, out = words
    base, _, around = paths.adapted(source, step, adapters)
    beneath = source_of(base)
    model = beneath or base
    if to is None and Path(out).suffix != ".gguf":
        to = "hf" if (model / "config.json").is_file() or model.is_file() else "jaxgen"
    if not around and beneath is None:
        raise ConfigError(
            f"{source} has no adapter to merge; name one, `jaxgen merge {source} ADAPTER {out}`, "
            f"or write the model as it is: `jaxgen convert {source} {out} --to {to or 'gguf'}`"
        )
    convert.convert(source, out, to=to, step=step, adapter=tuple(adapters))
