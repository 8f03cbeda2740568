"""Quantised weights in Hugging Face folders, as the `compressed-tensors` package has them.

A matrix NAME.weight [R, C] is NAME.weight_packed (int32, 8 or 4 integers each, along a row),
NAME.weight_shape and NAME.weight_scale; of format int-quantized NAME.weight is int8 as it is. Zero
points are packed along a column. Source: https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.models.families.known_settings import COMPRESSED
from jaxgen.models.families.weights import Theirs
from jaxgen.pretrained import coded
from jaxgen.pretrained.coded import Codes, Sites
from jaxgen.store.safetensors import Tensor

Json = dict[str, Any]
QUANTISATION, OLD_QUANTISATION = "quantization_config", "compression_config"
FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
WEIGHT = ".weight"
WORD = 32  # bits of a packed number
OTHERS = (".k_scale", ".v_scale", ".output_scale", ".input_scale", ".input_zero_point")


def linear_codes(theirs: Theirs, flat: Mapping[str, Any], by_path: Sites) -> Codes | None:
    """Return the integers of a matrix; None of a plain one, and of tables, which stay numbers."""
    is_linear = all(link.path in by_path for link in theirs.links)
    return coded.gather(theirs, flat, by_path) if is_linear else None


def arrays(name: str, codes: Codes) -> dict[str, np.ndarray]:
    """Return the tensors that a matrix is written as, by name."""
    home = name.removesuffix(WEIGHT)
    parts = {f"{home}.weight_scale": codes.scale}
    if codes.rounds_inputs:
        return parts | {name: codes.integers}
    parts[f"{home}.weight_packed"] = pack(codes.integers, codes.bits)
    parts[f"{home}.weight_shape"] = np.asarray(codes.integers.shape, np.int64)
    if codes.zero is not None:
        packed = pack(np.ascontiguousarray(codes.zero.T), codes.bits)
        parts[f"{home}.weight_zero_point"] = np.ascontiguousarray(packed.T)
    return parts


def pack(integers: np.ndarray, bits: int) -> np.ndarray:
    """Return rows of integers of 4 or 8 bits, [R, C] int8, as words [R, C * bits / 32] int32."""
    each = WORD // bits
    padded = np.pad(integers, ((0, 0), (0, -integers.shape[1] % each)))
    parts = (padded.astype(np.int64) + 2 ** (bits - 1)).astype(np.uint32)
    parts = parts.reshape(len(parts), -1, each) << (bits * np.arange(each, dtype=np.uint32))
    return np.bitwise_or.reduce(parts, axis=-1).view(np.int32)


def unpack(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Return the first columns of what `pack` packed, int8."""
    shifts = bits * np.arange(WORD // bits, dtype=np.uint32)
    parts = words.view(np.uint32)[..., None] >> shifts & np.uint32(2**bits - 1)
    integers = parts.reshape(len(words), -1)[:, :columns].astype(np.int16) - 2 ** (bits - 1)
    return integers.astype(np.int8)


def describe(wanted: Mapping[str, Theirs], flat: Mapping[str, Any], by_path: Sites) -> Json:
    """Return what config.json says of quantised weights; nothing of a model that has none."""
    schemes: dict[tuple, list[str]] = {}
    plain = []
    for name, theirs in wanted.items():
        codes = linear_codes(theirs, flat, by_path)
        module = name.removesuffix(WEIGHT)
        if codes is not None:
            group = None if codes.group == theirs.shape[1] else codes.group
            key = (codes.bits, group, codes.zero is None, codes.rounds_inputs)
            schemes.setdefault(key, []).append(module)
        elif len(theirs.shape) == 2:
            plain.append(module)
    if not schemes:
        return {}
    is_one = len(schemes) == 1
    groups = {
        f"group_{i}": _scheme(*key) | {"targets": ["Linear"] if is_one else modules}
        for i, (key, modules) in enumerate(schemes.items())
    }
    formats = {str(group["format"]) for group in groups.values()}
    return {
        QUANTISATION: {
            "quant_method": COMPRESSED[0],
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted({*plain, "lm_head"}),
            "kv_cache_scheme": None,
        }
    }


def _scheme(bits: int, group: int | None, symmetric: bool, rounds_inputs: bool) -> Json:
    fixed = {"type": "int", "dynamic": False, "symmetric": symmetric, "num_bits": bits}
    inputs = None
    if rounds_inputs:
        inputs = {"type": "int", "num_bits": 8, "symmetric": True, "dynamic": True}
        inputs |= {"strategy": "token"}
    strategy = {"strategy": "channel" if group is None else "group", "group_size": group}
    form = "int-quantized" if rounds_inputs else "pack-quantized"
    return {"weights": fixed | strategy, "input_activations": inputs, "format": form}


class Packed(NamedTuple):
    """A quantised matrix of a folder, in place of the tensors that it is stored as."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: Mapping[str, Tensor]  # by the end of their names, as "weight_scale"
    rounds_inputs: bool

    def codes(self) -> Codes:
        """Return its integers; CheckpointError if they don't fit one another."""
        rows, columns = self.shape
        scale = self.parts["weight_scale"].read().astype(np.float32)
        scale = np.broadcast_to(scale.reshape(-1, scale.shape[-1] if scale.ndim > 1 else 1),
                                (rows, scale.shape[-1] if scale.ndim > 1 else 1))  # fmt: skip
        bits, integers = 8, self.parts.get("weight")
        if integers is not None:
            values = integers.read()
        else:
            packed = self.parts["weight_packed"]
            bits = next((b for b in (4, 8) if packed.shape[1] == -(-columns * b // WORD)), 0)
            if not bits or packed.dtype != "I32" or packed.shape[0] != rows:
                raise self._error("is packed with neither 4 nor 8 bits")
            values = unpack(packed.read(), bits, columns)
        if columns % scale.shape[1]:
            raise self._error(f"has {scale.shape[1]} scales a row, of {columns} numbers")
        return Codes(values, scale, self._zero(bits, scale.shape), bits, self.rounds_inputs)

    def _zero(self, bits: int, shape: tuple[int, ...]) -> np.ndarray | None:
        zero = self.parts.get("weight_zero_point")
        if zero is None:
            return None
        values = zero.read()
        if zero.dtype == "I32":
            words = np.ascontiguousarray(values.reshape(-1, shape[1]).T)
            values = unpack(words, bits, shape[0]).T
        if values.size == 1:
            values = np.broadcast_to(values.reshape(1, 1), shape)
        if zero.dtype not in ("I8", "I32") or values.size != shape[0] * shape[1]:
            raise self._error(f"has zero points of {zero.dtype}{list(zero.shape)}")
        values = values.reshape(shape).astype(np.int8)
        return values if values.any() else None

    def read(self) -> np.ndarray:
        """Return the float32 numbers that the integers stand for."""
        return self.codes().numbers()

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.name!r} {text}; fetch it again")


def opened(folder: Path, about: Json, stored: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Return a folder's tensors with each quantised matrix as one of them.

    about: config.json. Raises CheckpointError for other ways of quantising, by name.
    """
    quantisation = about.get(QUANTISATION) or about.get(OLD_QUANTISATION)
    if not quantisation:
        return stored
    rounds_inputs = _check(folder, quantisation)
    named = str(about.get("dtype", about.get("torch_dtype")))
    dtype = {"bfloat16": "BF16", "float16": "F16"}.get(named, "F32")
    scales = [name for name in stored if name.endswith(".weight_scale")]
    matrices, used = {}, {name for name in stored if name.endswith(OTHERS)}
    if used:
        kinds = sorted({name.rpartition(".")[2] for name in used})
        warnings.warn(f"{folder}: {', '.join(kinds)} of quantised inputs or caches are ignored",
                      stacklevel=3)  # fmt: skip
    for name in scales:
        home = name.removesuffix(".weight_scale")
        parts = {
            end: stored[f"{home}.{end}"]
            for end in ("weight", "weight_packed", "weight_scale", "weight_zero_point",
                        "weight_shape", "weight_g_idx")
            if f"{home}.{end}" in stored
        }  # fmt: skip
        used |= {f"{home}.{end}" for end in parts}
        whole = parts.get("weight")
        if "weight_g_idx" in parts:
            raise CheckpointError(
                f"{folder}: {home}.weight_g_idx orders groups by activations, which is not read; "
                f"give a model whose actorder is weight or null"
            )
        if whole is None and not {"weight_packed", "weight_shape"} <= parts.keys():
            raise CheckpointError(f"{folder}: {name!r} stands without integers; fetch it again")
        shape = whole.shape if whole is not None else parts["weight_shape"].read().tolist()
        home = f"{home}{WEIGHT}"
        path = parts["weight_scale"].path
        matrices[home] = Packed(path, home, tuple(shape), dtype, parts, rounds_inputs)
    return {name: tensor for name, tensor in stored.items() if name not in used} | matrices


def _check(folder: Path, quantisation: Json) -> bool:
    """Return whether inputs are rounded token by token; CheckpointError for what is not read."""
    form = quantisation.get("format")
    groups = quantisation.get("config_groups") or {}
    schemes = [group for group in groups.values() if isinstance(group, Mapping)]
    forms = {scheme.get("format") or form for scheme in schemes}
    if odd := sorted(map(str, forms - {*FORMATS})):
        raise CheckpointError(
            f"{folder}: quantization_config.format={odd[0]} is not read; known are "
            f"{', '.join(FORMATS)}: give the model before it was quantised"
        )
    for scheme in schemes:
        weights = scheme.get("weights") or {}
        kind = {"type": weights.get("type", "int"), "num_bits": weights.get("num_bits", 8)}
        strategy = weights.get("strategy") or "tensor"
        if kind["type"] != "int" or kind["num_bits"] not in (4, 8):
            text = f"{kind['type']} of {kind['num_bits']} bits"
            raise CheckpointError(f"{folder}: weights of {text} are not read; give int of 4 or 8")
        if strategy not in ("tensor", "channel", "group"):
            raise CheckpointError(
                f"{folder}: weights with a scale for each {strategy} are not read; give one with "
                f"a scale for each channel or group"
            )
    inputs = [scheme.get("input_activations") or {} for scheme in schemes]
    rounded = [one.get("dynamic") is True and one.get("num_bits") == 8 for one in inputs]
    if any(inputs) and not all(rounded):
        warnings.warn(
            f"{folder}: input_activations of quantization_config is ignored, and no inputs are "
            f"rounded: that is for 8 bits, dynamic=true, in all config_groups",
            stacklevel=4,
        )
    return all(rounded)
