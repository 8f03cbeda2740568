"""Published models that see or hear as well as read: their language model, which stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxgen.errors import CheckpointError


class Parts(NamedTuple):
    """What the tensors of a model of several parts are called.

    renamed: how names of the language model begin in the files, and how they do without the other
    parts. left_out: patterns of the names of these.
    """

    renamed: Mapping[str, str]
    left_out: tuple[str, ...]


_INSIDE = {"model.language_model.": "model."}
_OUTSIDE = {"language_model.": ""}
_SEEING = ("vision_tower.*", "multi_modal_projector.*")
_GEMMA = tuple(f"model.{name}.*" for name in ("vision_tower", "audio_tower"))
_GEMMA += ("model.vision_embedder.*", "model.embed_vision.*", "model.embed_audio.*")
PARTS: dict[str, Parts] = {
    "gemma3": Parts(_OUTSIDE | _INSIDE, (*_SEEING, *(f"model.{name}" for name in _SEEING))),
    "gemma3n": Parts(_INSIDE, _GEMMA),
    "gemma4": Parts(_INSIDE, _GEMMA),
    "gemma4_unified": Parts(_INSIDE, _GEMMA),
    "llama4": Parts(_OUTSIDE, ("vision_model.*", "multi_modal_projector.*")),
    "mistral3": Parts(_OUTSIDE | _INSIDE, (*_SEEING, *(f"model.{name}" for name in _SEEING))),
    "qwen3_5": Parts(_INSIDE, ("model.visual.*",)),
    "qwen3_5_moe": Parts(_INSIDE, ("model.visual.*",)),
}
WRITERS = ("ForConditionalGeneration", "ForCausalLM")
# What config.json says of all parts, whatever a part says for when it stands alone.
WHOLE = ("tie_word_embeddings", "dtype", "torch_dtype", "quantization_config")


def text_config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the language model of a model of several parts.

    Raises CheckpointError where there is none, or where the model does something else than write.
    """
    part, named = theirs.get("text_config"), theirs.get("architectures") or [WRITERS[0]]
    if not isinstance(part, dict):
        raise CheckpointError(f"text_config={part!r:.60} is not the config of a language model")
    if not isinstance(named, list) or not str(named[0]).endswith(WRITERS):
        known = " and ".join(f"...{name}" for name in WRITERS)
        raise CheckpointError(f"architectures={named!r:.80} is not known here; known are {known}")
    whole = {key: theirs[key] for key in WHOLE if theirs.get(key) is not None}
    return {key: value for key, value in (part | whole).items() if key != "architectures"}
