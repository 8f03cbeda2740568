"""`jaxgen convert`."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import Step
from jaxgen.errors import CheckpointError


def convert(
    source: Annotated[str, Parameter(help="a run, a saved or Hugging Face folder, ORG/NAME")],
    out: Annotated[str, Parameter(help="the new folder to write")],
    /,
    *,
    to: Annotated[Literal["hf", "jaxgen"], Parameter(help="the layout to write")],
    family: Annotated[
        str | None, Parameter(help="--to hf: the model_type; else the first that fits")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="of a Hugging Face folder's weights; else as stored"),
    ] = None,
    step: Step = None,
) -> None:
    """Turn a run into a Hugging Face folder, or such a folder into one of ours.

    No pickle is opened and no code of a model is run.
    Where torch and transformers are installed, ids of texts and logits of the
    two are compared at the end; if they differ the folder is removed again.

    For example:
        jaxgen convert runs/quickstart hub/ --to hf
        jaxgen convert downloads/gpt2 models/gpt2 --to jaxgen
    """
    folder, which = paths.model(source, step)
    target = Path(out)
    start.prepare_jax(paths.cache())
    from jaxgen import tree
    from jaxgen.pretrained import assets, hub_parity, hub_read, model, pooling

    with exits.in_folder(folder):
        model.check_new(target)
        config, params = model.load(folder, step=which, dtype=dtype)
        source_assets = assets.read_assets(folder)
        model.save(
            *(target, config, params),
            tokenizer=source_assets.tokenizer,
            generation_config=source_assets.generation_config,
            chat_template=source_assets.chat_template,
            layout=to,
            family=family,
        )
        hub = target if to == "hf" else folder if hub_read.is_hub(folder) else None
        try:
            pooling.copy_pooling(folder, target)
            compared = _parity(hub, target, source_assets.tokenizer, hub_parity, model)
        except CheckpointError:
            shutil.rmtree(target)
            raise
    rows = [
        ("wrote", f"{target} ({to} layout)"),
        ("parameters", f"{tree.count(params):,}, {config.param_dtype}"),
        ("tokenizer", _tokenizer(source_assets.tokenizer)),
        ("chat template", "none" if source_assets.chat_template is None else "kept"),
        ("generation", source_assets.generation_config.describe() or "nothing special"),
        ("parity", compared),
    ]
    left = [("left out", f"of generation_config.json: {', '.join(source_assets.dropped)}")]
    terminal.print_rows(rows + (left if source_assets.dropped else []))


def _parity(hub: Path | None, target: Path, tokenizer, hub_parity, model) -> str:
    if hub is None:
        return "not measured: neither folder is one that transformers opens"
    if not hub_parity.can_compare():
        return "not measured: it needs torch and transformers, which are not installed"
    config, params = model.load(target)
    logits = hub_parity.compare(hub, config, params)
    if tokenizer is None:
        return logits
    try:
        return f"{logits}; {hub_parity.compare_texts(hub, tokenizer, config.topology)}"
    except CheckpointError as error:
        if hub == target:
            raise
        # A published tokenizer.json is what its model was taught with, however it is read.
        warnings.warn(str(error), stacklevel=2)
        return f"{logits}; ids differ"


def _tokenizer(tokenizer) -> str:
    if tokenizer is None:
        return "none: the source has none"
    return f"{tokenizer.vocab_size} ids"
