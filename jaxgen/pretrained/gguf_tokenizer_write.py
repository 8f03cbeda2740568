"""The tokenizer of a GGUF file, of one of ours or of a tokenizer.json."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.pretrained.gguf_keys import Json
from jaxgen.pretrained.gguf_tokenizer import CUTS, GPT2, HOME, ROLES, WHOLE, pre_tokenizer
from jaxgen.tokens import Tokenizer, modelproto
from jaxgen.tokens.export import ends, tokenizer_json
from jaxgen.tokens.modelproto import BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED, USER_DEFINED
from jaxgen.tokens.pieces import Pieces
from jaxgen.tokens.pipelines import SPACE


def write_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> Json:
    """Return the keys of a tokenizer; ConfigError for one of a kind that GGUF files don't have."""
    exported = tokenizer_json(tokenizer, rows=config.V, topology=config.topology)
    document = json.loads(exported.file)
    if isinstance(tokenizer, Pieces):
        keys = _of_proto(modelproto.read_proto(tokenizer.model))
    else:
        keys = _of_document(document)
    names, kinds = keys[f"{HOME}tokens"], keys[f"{HOME}token_type"]
    for row in document.get("added_tokens") or ():
        i = row["id"]
        names += [None] * (i + 1 - len(names))
        kinds += [UNUSED] * (i + 1 - len(kinds))
        if kinds[i] != UNKNOWN:
            names[i] = row["content"]
            kinds[i] = CONTROL if row["special"] else USER_DEFINED
    names += [None] * (config.V - len(names))
    kinds += [UNUSED] * (config.V - len(kinds))
    keys[f"{HOME}tokens"] = [f"[PAD{i}]" if n is None else n for i, n in enumerate(names)][
        : config.V
    ]
    keys[f"{HOME}token_type"] = np.asarray(kinds[: config.V], np.int32)
    if (scores := keys.get(f"{HOME}scores")) is not None:
        scores = (scores + [-1000.0] * config.V)[: config.V]
        keys[f"{HOME}scores"] = np.asarray(scores, np.float32)
    ids = {name: i for i, name in enumerate(keys[f"{HOME}tokens"])}
    for role, key in ROLES.items():
        if (name := exported.roles.get(role)) in ids:
            keys.setdefault(HOME + key, np.uint32(ids[name]))
    begin, end = ends(tokenizer, config.topology)
    if keys[f"{HOME}model"] != "bert":
        keys |= {f"{HOME}add_bos_token": bool(begin), f"{HOME}add_eos_token": bool(end)}
    for key, around in (("bos_token_id", begin), ("eos_token_id", end)):
        if len(around) == 1:
            keys[HOME + key] = np.uint32(around[0])
    return keys


def _of_proto(proto: modelproto.Proto) -> Json:
    """Return the keys of a sentencepiece model."""
    keys = {
        f"{HOME}model": "t5" if proto.model_type == UNIGRAM else "llama",
        f"{HOME}pre": "default",
        f"{HOME}tokens": [piece.name for piece in proto.pieces],
        f"{HOME}token_type": [piece.kind for piece in proto.pieces],
        f"{HOME}scores": [piece.score for piece in proto.pieces],
        f"{HOME}unknown_token_id": np.uint32(proto.unk),
        f"{HOME}add_space_prefix": proto.dummy_prefix,
        f"{HOME}remove_extra_whitespaces": proto.extra_spaces,
    }
    if proto.charsmap:
        keys[f"{HOME}precompiled_charsmap"] = np.frombuffer(proto.charsmap, np.uint8)
    return keys


def _of_document(document: Json) -> Json:
    """Return the keys of a tokenizer.json."""
    model, decoder = document["model"], document.get("decoder") or {}
    vocab = model.get("vocab")
    if model.get("type") == "BPE" and decoder.get("type") == "ByteLevel":
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        return {
            f"{HOME}model": "gpt2",
            f"{HOME}pre": _pre(document) if merges else GPT2,
            f"{HOME}merges": merges,
            **_pieces(vocab, lambda name: NORMAL),
        }
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        rank: dict[str, float] = {}
        for number, merge in enumerate(model["merges"]):
            rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), -number)
        keys = _pieces(vocab, lambda name: _sentencepiece_kind(name, model.get("unk_token")))
        first = document.get("pre_tokenizer") or {}
        prefix = first.get("prepend_scheme", "never") != "never"
        prefix |= "Prepend" in json.dumps(document.get("normalizer"))
        return keys | {
            f"{HOME}model": "llama",
            f"{HOME}pre": "default",
            f"{HOME}scores": [rank.get(name, -1e6) for name in keys[f"{HOME}tokens"]],
            f"{HOME}add_space_prefix": prefix,
        }
    if model.get("type") == "WordPiece":
        keys = _pieces(vocab, lambda name: NORMAL)
        added = {row["content"] for row in document.get("added_tokens") or ()}
        keys[f"{HOME}tokens"] = [
            name
            if name is None or name in added or (name.startswith("[") and name.endswith("]"))
            else name.removeprefix("##")
            if name.startswith("##")
            else SPACE + name
            for name in keys[f"{HOME}tokens"]
        ]
        return keys | {f"{HOME}model": "bert", f"{HOME}pre": "default"}
    if model.get("type") == "Unigram":
        return _of_unigram(document)
    raise ConfigError(
        f"a tokenizer of the type {model.get('type')} has no form in a GGUF file; known are BPE on "
        f"bytes, sentencepiece and WordPiece"
    )


def _of_unigram(document: Json) -> Json:
    """Return the keys of a tokenizer.json that was made of a unigram sentencepiece model."""
    model, unknown = document["model"], document["model"].get("unk_id")
    kinds = [_sentencepiece_kind(name, None) for name, _ in model["vocab"]]
    if not model.get("byte_fallback"):
        kinds = [NORMAL] * len(kinds)
    if unknown is not None:
        kinds[unknown] = UNKNOWN
    cleaning = _steps(document.get("normalizer"), "normalizers")
    cuts = _steps(document.get("pre_tokenizer"), "pretokenizers")
    scheme = next((step for step in cuts if step.get("type") == "Metaspace"), {})
    charsmap = next((s["precompiled_charsmap"] for s in cleaning if s["type"] == "Precompiled"), "")
    keys = {
        f"{HOME}model": "t5",
        f"{HOME}pre": "default",
        f"{HOME}tokens": [name for name, _ in model["vocab"]],
        f"{HOME}token_type": kinds,
        f"{HOME}scores": [score for _, score in model["vocab"]],
        f"{HOME}add_space_prefix": scheme.get("prepend_scheme", "always") != "never",
        # Runs of spaces are one, by cutting at spaces or by a pattern for two of them and more.
        f"{HOME}remove_extra_whitespaces": any(s.get("type") == "WhitespaceSplit" for s in cuts)
        or any(" {2,}" in str(s.get("pattern")) for s in cleaning),
    }
    if unknown is not None:
        keys[f"{HOME}unknown_token_id"] = np.uint32(unknown)
    if charsmap:
        keys[f"{HOME}precompiled_charsmap"] = np.frombuffer(b64decode(charsmap), np.uint8)
    return keys


def _steps(step: Json | None, name: str) -> list[Json]:
    """Return the steps of a part of a tokenizer.json, which may be a sequence of them."""
    return [] if step is None else step.get(name, [step])


def _pieces(vocab: Mapping[str, int], kind_of) -> Json:
    names: list[str | None] = [None] * (max(vocab.values()) + 1)
    for name, i in vocab.items():
        names[i] = name
    kinds = [UNUSED if name is None else kind_of(name) for name in names]
    return {f"{HOME}tokens": names, f"{HOME}token_type": kinds}


def _sentencepiece_kind(name: str, unknown: str | None) -> int:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return BYTE
    return UNKNOWN if name == unknown else NORMAL


def _pre(document: Json) -> str:
    """Return the tokenizer.ggml.pre that cuts words as a tokenizer.json does."""

    def steps(one: Json | None) -> list[Any]:
        return [_cut(part) for part in _steps(one, "pretokenizers")]

    wanted = steps(document.get("pre_tokenizer"))
    whole = bool(document["model"].get("ignore_merges"))
    matching = [name for name, cuts in CUTS.items() if steps(pre_tokenizer(cuts)) == wanted]
    matching.sort(key=lambda name: (name in WHOLE) != whole)
    if not matching:
        raise ConfigError(
            "the tokenizer cuts texts into words in a way that llama.cpp has no name for; write "
            "the model for Hugging Face: --to hf"
        )
    return matching[0]


def _cut(step: Json) -> Any:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return r"\p{N}", "isolated", False
    if step.get("type") == "Split":
        return step["pattern"].get("Regex"), step["behavior"].lower(), bool(step.get("invert"))
    if step.get("type") == "ByteLevel":
        return "bytes", step.get("use_regex", True), step.get("add_prefix_space")
    return step
