"""`jaxgen convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import Adapters, Step
from jaxgen.errors import ConfigError

Layout = Literal["hf", "jaxgen", "gguf", "peft"]
BLOCKS = ("q8_0", "q4_0")  # formats of numbers that GGUF files alone have


def convert(
    source: Annotated[str, Parameter(help="a run, a saved or Hugging Face folder, ORG/NAME")],
    out: Annotated[str, Parameter(help="the new folder to write, or a new .gguf file")],
    /,
    *,
    to: Annotated[
        Layout | None,
        Parameter(help="the layout to write; gguf where OUT ends with .gguf"),
    ] = None,
    family: Annotated[
        str | None, Parameter(help="--to hf: the model_type; else the first that fits")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "q8_0", "q4_0"] | None,
        Parameter(help="of a GGUF file's matrices, or of what is read from others; else as stored"),
    ] = None,
    step: Step = None,
    adapter: Adapters = (),
) -> None:
    """Turn a run into a Hugging Face folder or a GGUF file, or one of these into a folder of ours.

    No pickle is opened and no code of a model is run.
    Adapters become part of the weights; --to peft writes that of a run by itself.
    Quantised weights keep their integers where the layout has such a form: Q8_0
    and Q4_0 of GGUF, compressed-tensors of Hugging Face; --dtype float32 writes numbers.
    Where torch and transformers are installed, ids of texts and logits of the
    two are compared at the end; if they differ the folder is removed again,
    and the exit code is 4.

    For example:
        jaxgen convert runs/quickstart hub/ --to hf
        jaxgen convert downloads/gpt2 models/gpt2 --to jaxgen
        jaxgen convert runs/quickstart quickstart.gguf --dtype q8_0
        jaxgen convert runs/tuned adapter/ --to peft
    """
    folder, which, adapters = paths.adapted(source, step, adapter)
    target = files.to_path(out)
    layout = _layout(target, to, dtype)
    start.prepare_jax(paths.cache())
    from jaxgen import tree
    from jaxgen.models import api
    from jaxgen.pretrained import assets, model

    with exits.in_folder(folder):
        model.check_new(target)
        if layout == "peft":
            _write_adapter(folder, which, target)
            return
        config, params = _load(folder, which, None if layout == "gguf" else dtype, adapters)
        source_assets = assets.read_assets(folder)
        model.save(
            *(target, config, params),
            tokenizer=source_assets.tokenizer,
            generation_config=source_assets.generation_config,
            chat_template=source_assets.chat_template,
            layout=layout,
            family=family,
            dtype=dtype if layout == "gguf" else None,
        )
        try:
            if layout != "gguf":
                assets.copy_beside(folder, target)
            compared = f"not measured: the numbers are rounded to {dtype}"
            if layout != "gguf" or dtype is None:
                hub = target if layout == "hf" else None if adapters else folder
                compared = _parity(hub, target, source_assets.tokenizer)
        except BaseException:  # what was not compared to the end is no result
            files.remove(target)
            raise
        changes = _describe_quantised(folder, target, params, source)
    numbers = f"{tree.count(api.abstract(config)):,}, {dtype or config.param_dtype}{changes}"
    _say(target, layout, numbers, source_assets, compared)


def _load(folder: Path, step: Any, dtype: Any, adapters: Any) -> tuple[Any, Any]:
    """Return (config, params), with adapters merged.

    Integers stay, but beneath an adapter, where a dtype is given, and of GGUF files.
    """
    import jax

    from jaxgen.adapters.adapter import merge
    from jaxgen.pretrained import hub_read, model

    if folder.is_file() or not model.num_coded(folder):
        config, params = model.load(folder, step=step, dtype=dtype, adapter=adapters)
        return config, merge(params, config)
    weights = "plain" if adapters or dtype else "stored"
    read_dtype = dtype if hub_read.is_hub(folder) else None
    config, params = model.load(
        folder, step=step, dtype=read_dtype, weights=weights, adapter=adapters
    )
    if weights == "plain":
        config = config.replace(param_dtype=dtype or config.param_dtype)
        params = jax.tree.map(lambda x: x.astype(config.param_dtype), merge(params, config))
    return config, params


def _describe_quantised(folder: Path, target: Path, params: Any, source: str) -> str:
    """Return what became of the numbers that are quantised in the source; "" if there are none."""
    from jaxgen import tree
    from jaxgen.ops.int8 import Int8Activations
    from jaxgen.pretrained import model

    before = model.num_coded(folder)
    after = min(model.num_coded(target), before)
    if after < before:
        text = (
            f"; {before - after:,} of {before:,} quantised numbers of {source} are written in full"
        )
    elif before and not folder.is_file():
        text = f"; {before:,} of them quantised, with the integers of {source}"
    else:
        return ""
    rounds = any(isinstance(leaf, Int8Activations) for leaf in tree.flatten(params).values())
    return text + (", and inputs are rounded no more" if rounds and target.is_file() else "")


def _say(target: Path, layout: Layout, numbers: str, source_assets: Any, compared: str) -> None:
    rows = [
        ("wrote", f"{target} ({layout} layout)"),
        ("parameters", numbers),
        ("tokenizer", _tokenizer(source_assets.tokenizer)),
        ("chat template", "none" if source_assets.chat_template is None else "kept"),
        ("generation", source_assets.generation_config.describe() or "nothing special"),
        ("parity", compared),
    ]
    left = [("left out", f"of generation_config.json: {', '.join(source_assets.dropped)}")]
    terminal.print_rows(rows + (left if source_assets.dropped else []))


def _layout(target: Path, to: Layout | None, dtype: str | None) -> Layout:
    layout: Layout | None = to or ("gguf" if target.suffix == ".gguf" else None)
    if layout is None:
        raise ConfigError(f"--to is missing: hf, jaxgen, or gguf for {target}.gguf")
    if layout != "gguf" and target.suffix == ".gguf":
        raise ConfigError(
            f"--to {layout} writes a folder, but {target} is named as a file; drop --to, or give "
            f"a folder, {target.with_suffix('')}"
        )
    if layout != "gguf" and dtype in BLOCKS:
        raise ConfigError(f"--dtype {dtype} is a format of GGUF files; add --to gguf")
    return layout


def _write_adapter(folder: Path, step: Any, target: Path) -> None:
    """Write the adapter of a run as a folder of PEFT; ConfigError if it has none."""
    from jaxgen.pretrained import adapted

    path = folder if step is None else folder / "checkpoints" / f"{step:08d}"
    if adapted.source_of(folder) is None or step == "best":
        raise ConfigError(
            f"--to peft is for a run that was trained with adapter.kind, at a checkpoint's number; "
            f"{folder} {'has none' if step is None else f'at --step {step} is none'}"
        )
    adapter = adapted.write_peft(path, target)
    rows = [("wrote", f"{target} (peft layout)"), ("base", str(adapter.base))]
    weights = ", ".join(adapter.targets) or "none: virtual tokens before the text"
    terminal.print_rows([*rows, ("adapted weights", weights)])


def _parity(hub: Path | None, target: Path, tokenizer: Any) -> str:
    """Compare with transformers; hub: the source or the target, whichever it opens."""
    from jaxgen.pretrained import hub_parity, hub_read, model

    if hub is None or not hub.is_dir() or not hub_read.is_hub(hub):
        return "not measured: neither is a folder that transformers opens"
    if files.in_bucket(hub):
        return "not measured: transformers opens no folder in a bucket"
    if lacking := hub_parity.lacking(hub):
        return f"not measured: it needs {lacking}, not installed here"
    config, params = model.load(target)
    logits = hub_parity.compare(hub, config, params)
    if tokenizer is None:
        return logits
    return f"{logits}; {hub_parity.compare_texts(hub, tokenizer, config.topology)}"


def _tokenizer(tokenizer) -> str:
    if tokenizer is None:
        return "none: the source has none"
    return f"{tokenizer.vocab_size} ids"
