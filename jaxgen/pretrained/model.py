"""A model on disk: a run folder, one of its checkpoints, or a folder written by `save`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgen import arguments, files, settings, settings_yaml, tree
from jaxgen.adapters import adapter as adapters
from jaxgen.adapters.base import quantise
from jaxgen.arguments import at_least
from jaxgen.config import DType, ModelConfig
from jaxgen.errors import CheckpointError, ConfigError, UserError, run_advice
from jaxgen.mesh.place import laid
from jaxgen.models import api
from jaxgen.pretrained import adapted, gguf_write, hub_read, hub_write, leaves, sources
from jaxgen.pretrained.chat_template import ChatTemplate, write_chat_template
from jaxgen.pretrained.compressed_tensors import Packed
from jaxgen.pretrained.generation_config import GenerationConfig, write_generation_config
from jaxgen.store import Checkpoints, gguf, safetensors
from jaxgen.store.gguf_blocks import PLAIN
from jaxgen.store.steps import CHECKPOINTS, Step, run_and_step
from jaxgen.tokens import Tokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
HUB = (WEIGHTS, hub_read.INDEX, "tokenizer.json", "tokenizer_config.json")  # beside config.json
Layout = Literal["jaxgen", "hf", "gguf"]


def located(path: str | os.PathLike, step: Step = None) -> tuple[Path, int | None]:
    """Return the folder of a model and which of its checkpoints is meant; None: the newest sound.

    path: as for `load`. step: a number, "best" (lowest validation loss) or "last". Raises
    ConfigError for two steps that differ, or none of these; CheckpointError if none is best.
    """
    folder, own = run_and_step(path)
    if step is None or step == own:
        return folder, own
    if own is not None:
        raise ConfigError(f"{path} is step {own}, but step={step} is asked for; give one of them")
    if step == "last":
        return folder, None
    if step != "best":
        if isinstance(step, bool) or not isinstance(step, int):
            raise ConfigError(f"step={step!r} must be the number of a checkpoint, 'best' or 'last'")
        return folder, step
    checkpoints = _checkpoints(folder)
    best = checkpoints.best()
    if best is None:
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise CheckpointError(
            f"{folder} has no checkpoint with a validation loss, so none is best; of its steps "
            f"({there}) give one"
        )
    return folder, best


@arguments.checked(step=at_least(0))
def load(
    path: str | os.PathLike,
    *,
    step: Step = None,
    dtype: DType | None = None,
    shardings: Mapping[str, Any] | None = None,
    nonfinite: hub_read.NonFinite = "refuse",
    weights: Literal["plain", "stored"] = "plain",
    adapter: adapted.Words = (),
) -> tuple[ModelConfig, api.Params]:
    """Return the model of a run, a saved or a Hugging Face folder, or a GGUF file.

    Args:
        path: the folder; of a run also that of a checkpoint, RUN/checkpoints/00000200; or a .gguf
            file of llama.cpp. Where there is none of that name, a package that ships one, smollm2,
            or the id of a model of the Hugging Face hub, ORG/NAME or ORG/NAME@REVISION, which is
            fetched (extra `hub`).
        step: a certain checkpoint of a run, "best" (of the lowest validation loss) or "last"; None
            takes the newest sound one.
        dtype: Hugging Face folders and GGUF files: what to convert to; None keeps what is stored.
            Quantised blocks of a GGUF file become the float32 values that they stand for.
        shardings: Hugging Face folders, whose tensors are read one by one: a tree like the params,
            to place each on its devices.
        weights: of quantised ones, "stored" keeps the integers: of a GGUF file's Q8_0, and of
            Hugging Face folders of compressed-tensors (int8, int4 by channel or group), leaves
            that decode and embed (`jaxgen.ops.int8_blocks`) but are not trained; "plain" reads the
            numbers that they stand for. Folders of ours keep the integers in either case; on a CPU
            "plain" makes int8 of 4 bits, the same numbers, which is faster.
        nonfinite: Hugging Face folders: whether NaN and infinity are refused or taken.
        adapter: PATH or PATH=SCALE of an adapter that stands around the weights, or several: a
            folder of PEFT, or a run that was trained with `adapter.kind`. The path itself may be
            one, if it names its base.

    Returns:
        (config, params). Raises ConfigError if there is no such model, BusyError if it can't be
        fetched, CheckpointError if the folder holds none, or one whose files are damaged or don't
        fit the config.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> jaxgen.save("model", config, jaxgen.init(config, jax.random.key(0)))
    >>> jaxgen.load("model")[0] == config
    True

    With an adapter beside its weights, here a new one, in a folder as PEFT writes it:

    >>> from dataclasses import replace
    >>> from pathlib import Path
    >>> from jaxgen.adapters.adapter import init, plan
    >>> from jaxgen.adapters.settings import AdapterSettings
    >>> from jaxgen.models.families import FAMILIES
    >>> from jaxgen.pretrained.peft_write import write_adapter
    >>> form, params = plan(AdapterSettings(kind="lora", rank=2), config), jaxgen.load("model")[1]
    >>> lora = replace(form, params=init(form, config, params, jax.random.key(1)))
    >>> Path("lora").mkdir()
    >>> write_adapter(Path("lora"), lora, FAMILIES["gpt2"], config)
    >>> config, params = jaxgen.load("model", adapter="lora=0.5")
    >>> jaxgen.apply(params, config, [[1, 2, 3]]).logits.shape
    (1, 3, 16)
    """
    path, words = adapted.resolved(sources.local_path(path), adapter)
    more: dict[str, Any] = {"dtype": dtype, "shardings": shardings, "nonfinite": nonfinite}
    config, params = _load(path, step=step, weights=weights, **more)
    return config, adapted.attached(config, params, path, words)


def _load(
    path: Path,
    *,
    step: Step,
    dtype: DType | None,
    shardings: Mapping[str, Any] | None,
    nonfinite: hub_read.NonFinite,
    weights: str,
) -> tuple[ModelConfig, api.Params]:
    folder = run_and_step(path)[0]
    if not folder.is_dir() and not hub_read.is_hub(folder):
        raise ConfigError(f"{folder} is no folder; {sources.REMEDIES}")
    if hub_read.is_hub(folder):
        if step is not None:
            raise ConfigError(f"step={step} but {folder} is no run: it has no checkpoints")
        hub_read.refuse_dtype(dtype)
        stored = weights == "stored"
        if stored and shardings is not None:
            raise ConfigError(f"weights={weights!r} is for one device; drop it, or shardings")
        return hub_read.load_hub(
            *(folder,),
            dtype=dtype,
            shardings=shardings,
            nonfinite=nonfinite,
            stored_blocks=stored,
        )
    if dtype is not None or shardings is not None:
        raise ConfigError(
            f"dtype= and shardings= are for Hugging Face folders and GGUF files; {folder} is none"
        )
    if (folder / WEIGHTS).exists():
        if step is not None:
            raise ConfigError(f"step={step} but {folder} is no run: it has no checkpoints")
        config, params = read_config(folder), _read_weights(folder / WEIGHTS, weights == "plain")
        _check_shapes(folder, params, config, quantised=True)
    else:
        config, params = load_step(path, step)[:2]
    if weights == "stored" and not any(map(leaves.is_quantised, tree.flatten(params).values())):
        raise ConfigError(f"no weight of {folder} is quantised; drop weights={weights!r}")
    return config, params


def load_step(path: str | os.PathLike, step: Step = None) -> tuple[ModelConfig, api.Params, int]:
    """Return (config, params, step) of a run; arguments and errors are those of `load`."""
    folder, wanted = located(path, step)
    config = read_config(folder)
    checkpoint = _checkpoints(folder).read(wanted)
    if (source := adapted.source_of(folder)) is not None:
        adapter = adapted.read_adapter(folder, config, checkpoint["params"])
        params = adapted.beneath(load(source)[1], adapter, config, folder)
        # The model that was trained and validated stood on rounded weights.
        params = quantise(params, config, adapted.settings_of(folder).base)
        return config, adapters.attach(params, adapter, config), checkpoint["step"]
    _check_shapes(folder, checkpoint["params"], config)
    return config, checkpoint["params"], checkpoint["step"]


def read_config(folder: Path) -> ModelConfig:
    """Return the model section of the folder's config.yaml; CheckpointError if it is no model."""
    folder, _ = run_and_step(folder)
    if hub_read.is_hub(folder):
        return hub_read.read_config(folder)[1]
    path = folder / CONFIG
    has_weights = (folder / WEIGHTS).exists() or (folder / CHECKPOINTS).is_dir()
    others = [name for name in HUB if (folder / name).exists()]
    if not path.exists() and others and not (folder / CHECKPOINTS).is_dir():
        raise CheckpointError(
            f"{folder} has {others[0]} but no {hub_read.CONFIG}, as a Hugging Face folder has, nor "
            f"{CONFIG}, as one of ours; fetch it"
        )
    if not path.exists() or not has_weights:
        raise CheckpointError(
            f"{folder} is no run: it lacks {CONFIG if has_weights else 'checkpoints/'}; "
            f"{run_advice(folder)}"
        )
    try:
        mapping = settings_yaml.read_yaml(path)
        return settings.build(ModelConfig, mapping.get("model", {}), "model")
    except UserError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


@arguments.checked
def save(
    path: str | os.PathLike,
    config: ModelConfig,
    params: api.Params,
    *,
    tokenizer: Tokenizer | None = None,
    generation_config: GenerationConfig | None = None,
    chat_template: ChatTemplate | None = None,
    layout: Layout = "jaxgen",
    family: str | None = None,
    dtype: gguf_write.Form | None = None,
) -> None:
    """Write a model as a folder that `load` reads; it appears whole or not at all.

    Args:
        path: of the folder, which must not exist.
        config: of the model.
        params: of the model.
        tokenizer: one of `jaxgen.tokens`.
        generation_config: as `pretrained.assets.read_assets` gives it.
        chat_template: likewise.
        layout: "jaxgen" keeps our own paths in one safetensors file; "hf" is what transformers
            opens; "gguf" is one file, not a folder, which llama.cpp opens.
        family: hf: the model_type; None takes the first that can say all of the config.
        dtype: gguf: of matrices: float32, float16, bfloat16, "q8_0" (8.5 bits a number) or "q4_0"
            (4.5 bits, tables of tokens 8.5); None keeps config.param_dtype.

    Returns:
        Nothing. Raises ConfigError if the path exists or no family has such a model, BusyError if
        it can't be written.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> jaxgen.save("model", config, jaxgen.init(config, jax.random.key(0)), layout="hf")
    """
    folder = files.to_path(path)
    check_new(folder)
    _check_shapes(folder, params, config, quantised=True)
    if layout != "hf" and family is not None:
        raise ConfigError(f"family={family!r} has no effect with layout={layout}; drop it")
    if layout != "gguf" and dtype is not None:
        raise ConfigError(f"dtype={dtype!r} has no effect with layout={layout}; drop it")
    generation = generation_config or GenerationConfig()
    if generation.labels and len(generation.labels) != config.classes:
        generation = replace(generation, labels=())
    if config.head != "classes":
        generation = replace(generation, problem_type=None)
    assets: dict[str, Any] = {"tokenizer": tokenizer, "generation_config": generation}
    if layout == "gguf":
        if folder.suffix != gguf.SUFFIX:
            raise ConfigError(f"{folder}: the name of a GGUF file ends with {gguf.SUFFIX}")
        with files.new_file(folder) as draft:
            assets |= {"chat_template": chat_template, "form": dtype}
            gguf_write.write_model(draft, config, params, **assets)
        return
    with files.new_folder(folder) as draft:
        if layout == "hf":
            hub_write.write_hub(draft, config, params, **assets, model_type=family)
            if chat_template is not None:
                hub_write.write_template(draft, chat_template)
        else:
            _write_folder(draft, config, params, **assets, chat_template=chat_template)


def _write_folder(
    draft: Path,
    config: ModelConfig,
    params: api.Params,
    *,
    tokenizer: Tokenizer | None,
    generation_config: GenerationConfig,
    chat_template: ChatTemplate | None,
) -> None:
    """Write a folder of our own layout."""
    arrays, notes = leaves.to_arrays(tree.flatten(params))
    shapes = {name: (leaf.dtype.name, tuple(leaf.shape)) for name, leaf in arrays.items()}
    safetensors.write_safetensors(
        *(draft / WEIGHTS, shapes, lambda name: np.asarray(arrays[name])),
        {"format": "jaxgen", **notes},
    )
    files.write(draft / CONFIG, settings_yaml.to_yaml({"model": settings.as_dict(config)}))
    write_generation_config(draft, generation_config)
    if chat_template is not None:
        write_chat_template(draft, chat_template)
    if tokenizer is not None:
        tokenizer.save(draft / "tokenizer")


def check_new(folder: Path) -> None:
    """Raise ConfigError unless a model can be written there: it is absent, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "file" if folder.is_file() else "folder"
        raise ConfigError(f"{folder} exists already; give a new {kind}")


def num_coded(path: Path) -> int:
    """Return how many numbers of a model that is no run are stored as integers with scales."""
    if hub_read.is_hub(path):
        if path.is_file():
            return sum(math.prod(t.shape) for t in gguf.open_file(path).tensors.values()
                       if t.dtype not in PLAIN)  # fmt: skip
        stored = hub_read.tensors(path).values()
        return sum(math.prod(t.shape) for t in stored if isinstance(t, Packed))
    if not (path / WEIGHTS).is_file():
        return 0
    notes = safetensors.open_noted(path / WEIGHTS)[1]
    shapes = tree.flatten(api.abstract(read_config(path)))
    return sum(math.prod(shapes[name].shape) for name in leaves.paths(notes) & shapes.keys())


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / CHECKPOINTS, keep_last=1, keep_best=0, fingerprints={})


def _read_weights(path: Path, widen: bool) -> api.Params:
    import jax

    tensors, notes = safetensors.open_noted(path)

    def read(name: str) -> Any:
        return jax.device_put(laid(safetensors.read_tensor(tensors[name])))

    return tree.unflatten(dict(leaves.from_arrays(tensors, notes, read, path, widen=widen)))


def _check_shapes(
    folder: Path, params: api.Params, config: ModelConfig, *, quantised: bool = False
) -> None:
    """Raise unless the parameters are those of a config; quantised: weights may be so."""
    flat = tree.flatten(params)
    for path, leaf in flat.items():
        plain = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if not plain and not (quantised and leaves.is_quantised(leaf)):
            raise ConfigError(
                f"params: {path} is a {type(leaf).__name__}, which is no array and can't be saved; "
                f"merge it into its weight, or save it on its own"
            )
    wanted = {p: leaf.shape for p, leaf in tree.flatten(api.abstract(config)).items()}
    misfits = leaves.misfits(flat, config)
    fitting = (path for path, leaf in flat.items() if leaves.is_quantised(leaf))
    shapes = {path: wanted.get(path) for path in fitting if path not in misfits}
    shapes |= dict.fromkeys(misfits, "quantised in another shape")
    actual = shapes | {p: leaf.shape for p, leaf in flat.items() if p not in shapes}
    wrong = [
        f"{path}: {actual.get(path, 'absent')} instead of {wanted.get(path, 'nothing')}"
        for path in sorted(wanted.keys() | actual.keys())
        if wanted.get(path) != actual.get(path)
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{folder}: params don't fit config: {'; '.join(wrong[:3])}{more}")
