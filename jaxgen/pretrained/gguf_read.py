"""A GGUF file as transformers would have it in a folder: config.json, weights, generation config.

Everything above reads these as it does those of a folder (`hub_read`), through the same families.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.pretrained.coded import Codes
from jaxgen.pretrained.gguf_architecture import Architecture
from jaxgen.pretrained.gguf_config import architecture_of, short
from jaxgen.pretrained.gguf_keys import Json
from jaxgen.pretrained.gguf_rows import RATE, VECTORS
from jaxgen.store import gguf
from jaxgen.store.gguf_blocks import PLAIN, Q8_0

QUERIES, KEY_HEADS = ("attn_q.weight", "attn_q.bias"), ("attn_k.weight", "attn_k.bias")
# general.sampling.*: keys of generation_config.json.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
# What llama.cpp takes where a file says nothing (common/common.h).
UNSAID = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
# llama.h: unspecified and none, mean, first token, last token.
POOLINGS = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each of which ends a turn


def is_gguf(path: Path) -> bool:
    """Return whether a path is that of a GGUF file, by its name."""
    return path.suffix.lower() == gguf.SUFFIX


class Stored(NamedTuple):
    """A tensor of a GGUF file as transformers has it.

    turned: heads whose halves are interleaved in it, 0 for none; offset: what was added to it;
    power: whether it holds minus e to the power of it.
    """

    tensor: gguf.Tensor
    turned: int = 0
    offset: float = 0.0
    power: bool = False

    @property
    def path(self) -> Path:
        """The file."""
        return self.tensor.path

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """What `read` gives, as safetensors calls it."""
        return self.tensor.dtype if self.tensor.dtype in PLAIN else "F32"

    def read(self) -> np.ndarray:
        """Return the tensor's values; CheckpointError if the file has changed or can't be read."""
        rows = gguf.read_rows(self.tensor)
        values = gguf.values(self.tensor, rows if len(self.shape) == 1 else self.halves(rows))
        values = self.halves(values) if len(self.shape) == 1 else values
        if self.power:
            if not (values < 0).all():
                raise CheckpointError(f"{self.path}: {self.name!r} has values that are not below 0")
            return np.log(-values)
        return values - np.asarray(self.offset, values.dtype) if self.offset else values

    def codes(self) -> Codes:
        """Return the integers of a Q8_0 tensor."""
        packed = self.halves(gguf.read_rows(self.tensor)).reshape(-1).view(Q8_0)
        scale = packed["d"].astype(np.float32).reshape(self.shape[0], -1)
        return Codes(packed["q"].reshape(self.shape), scale, None, 8)

    def halves(self, rows: np.ndarray) -> np.ndarray:
        """Return rows with the first half of each head before its second one."""
        if not self.turned:
            return rows
        pairs = rows.reshape(self.turned, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def turned(name: str, architecture: Architecture, heads: Any, kv_heads: Any) -> int:
    """Return the number of heads whose halves are interleaved in a tensor, 0 if they are not."""
    part = name.split(".", 2)[-1]
    number = heads if part in QUERIES else kv_heads if part in KEY_HEADS else 0
    return number if architecture.turned and isinstance(number, int) else 0


def offset(name: str, architecture: Architecture) -> float:
    """Return what is added to the values of a tensor in files."""
    return architecture.offset if name.endswith("norm.weight") and "ssm_norm" not in name else 0.0


def tensors(path: Path) -> dict[str, Stored]:
    """Return {name: Stored} of a file's tensors."""
    contents = gguf.open_file(path)
    architecture = architecture_of(path, contents)
    home = f"{architecture.name}.attention"
    heads = contents.metadata.get(f"{home}.head_count")
    kv_heads = contents.metadata.get(f"{home}.head_count_kv", heads)
    stored = {}
    for key, tensor in contents.tensors.items():
        if key.endswith(VECTORS) and tensor.shape[0] == 1:  # which older files have as a matrix
            tensor = tensor._replace(shape=tensor.shape[1:])
        count = turned(key, architecture, heads, kv_heads)
        if count and (count < 0 or tensor.shape[0] % (2 * count)):
            raise CheckpointError(
                f"{path}: {key!r} has {tensor.shape[0]} rows, which are no {count} heads of pairs"
            )
        stored[key] = Stored(tensor, count, offset(key, architecture), key.endswith(RATE))
    return stored


def read_generation(path: Path, *, unsaid: bool = False) -> Json:
    """Return what a file says of generation, by the keys of generation_config.json.

    unsaid: also how llama.cpp samples where the file does not say.
    """
    metadata = gguf.open_file(path).metadata
    keys: Json = {}
    ends = [metadata.get(f"tokenizer.ggml.{name}") for name in ENDS]
    if stop_ids := [*dict.fromkeys(i for i in ends if type(i) is int)]:
        keys["eos_token_id"] = stop_ids
    for name, theirs in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if (value := metadata.get(f"tokenizer.ggml.{theirs}")) is not None:
            keys[name] = value
    start = metadata.get(f"{metadata.get('general.architecture')}.decoder_start_token_id")
    if start is not None:
        keys["decoder_start_token_id"] = start
    if unsaid:
        keys |= UNSAID
    for name, key in SAMPLING.items():
        if (value := metadata.get(f"general.sampling.{name}")) is not None:
            keys[key] = short(value)
    if "temperature" in keys:
        keys["do_sample"] = keys["temperature"] != 0
    return keys


def read_templates(path: Path) -> dict[str, str]:
    """Return {name: chat template} of a file; "default" is the one without a name."""
    metadata = gguf.open_file(path).metadata
    home = "tokenizer.chat_template"
    sources = {
        "default" if key == home else key.removeprefix(f"{home}."): value
        for key, value in metadata.items()
        if key == home or key.startswith(f"{home}.")
    }
    return {name: value for name, value in sources.items() if isinstance(value, str)}


def read_repo(path: Path) -> str | None:
    """Return the id on the Hugging Face hub of the model that a file was made of, if it says so."""
    metadata = gguf.open_file(path).metadata
    for key in ("source.repo_url", "source.huggingface.repository", "repo_url"):
        word = metadata.get(f"general.{key}")
        name = word.removeprefix("https://huggingface.co/") if isinstance(word, str) else ""
        if name.count("/") == 1 and ":" not in name:
            return name
    return None


def read_pooling_mode(path: Path) -> str | None:
    """Return a file's pooling as sentence-transformers calls it; None if it names none."""
    contents = gguf.open_file(path)
    name = architecture_of(path, contents).name
    kind = contents.metadata.get(f"{name}.pooling_type", 0)
    if kind not in POOLINGS:
        raise CheckpointError(
            f"{path}: pooling_type={kind!r:.40} is not known; known are 0 to {max(POOLINGS)}"
        )
    return POOLINGS[kind]
