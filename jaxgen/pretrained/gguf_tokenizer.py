"""The tokenizer of a GGUF file as the files of a Hugging Face folder would describe it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import CheckpointError, nearest
from jaxgen.pretrained.gguf_read import read_generation
from jaxgen.pretrained.tokenizer_kinds import KINDS
from jaxgen.store import gguf
from jaxgen.tokens import Special, modelproto, pipelines
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.modelproto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Piece, Proto
from jaxgen.tokens.pipelines import SPACE, Json

HOME = "tokenizer.ggml."
# Pieces by their role in tokenizer_config.json; the third is misspelt in the format.
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "sep_token": "seperator_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
GPT2 = "gpt-2"
_DIGIT, _THREE = r"\p{N}", r"\p{N}{1,3}"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_THREE}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
_TEKKEN = _CASED % ("", "") + rf"|{_DIGIT}{_MARKS}{_SPACES}"
_GPT4O = _CASED % (f"{_ENGLISH}?", f"{_ENGLISH}?") + rf"|{_THREE}{_MARKS}{_SPACES}"
_QWEN35 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{_DIGIT}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    _THREE,
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_WORDS = " ?[^(\\s|.,!?…。，、।۔،)]+"
# Where a text is cut into words before merges, by tokenizer.ggml.pre: regular expressions, each
# applied to the parts that the one before has cut; the last of them may be GPT-2's own. Sources:
# llama-vocab.cpp of llama.cpp, and the tokenizer.json of the models that it names.
_CUTS: dict[tuple[str, ...], str] = {
    (GPT2,): "gpt-2 default mpt olmo jais trillion phi-2 gigachat roberta-bpe exaone4 a.x-4.0 "
    "mellum granite-docling jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code "
    "modern-bert",
    (_DIGIT, GPT2): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"): "falcon",
    (_LLAMA3,): "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "
    "dbrx smaug-bpe chatglm-bpe glm4 glm5",
    (pipelines.QWEN2,): "qwen2 stablelm2 deepseek-r1-qwen hunyuan megrez kormo f2llmv2 solar-open "
    "grok-2",
    (_QWEN35,): "qwen35",
    (_TEKKEN,): "tekken",
    (_SEED,): "seed-coder",
    (_BAILING,): "bailingmoe bailingmoe2 llada-moe",
    (_GPT4O,): "gpt-4o llama4 kanana2 minimax-m2",
    _DEEPSEEK3: "deepseek-v3 hunyuan-dense joyai-llm",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT): "deepseek-coder",
    (_WORDS,): "bloom poro-chat gpt3-finnish",
    (_WORDS, _DIGIT): "viking",
}
CUTS = {name: cuts for cuts, names in _CUTS.items() for name in names.split()}
# Which begin texts with bos; and which take a word that is a piece as it is, whatever the merges.
_BEGIN = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken"
BEGIN = frozenset(_BEGIN.split())
WHOLE = BEGIN | {"glm4", "glm5"}
COMPOSED = ("qwen2", "qwen35", "modern-bert")  # those that normalise to NFC


def has_tokenizer(path: Path) -> bool:
    """Return whether a GGUF file holds a tokenizer."""
    kind = gguf.open_file(path).metadata.get(f"{HOME}model")
    return isinstance(kind, str) and kind not in ("", "none", "no_vocab")


def describe_pieces(path: Path) -> Json:
    """Return {"bos_token": name, ...} of a file; CheckpointError for a damaged vocabulary."""
    metadata = gguf.open_file(path).metadata
    tokens = _tokens(path, metadata)
    roles: Json = {}
    for role, key in ROLES.items():
        if (i := metadata.get(HOME + key)) is not None:
            if type(i) is not int or not 0 <= i < len(tokens):
                raise CheckpointError(f"{path}: {HOME}{key}={i!r:.40} is no id of its vocabulary")
            roles[role] = tokens[i]
    if metadata.get(f"{HOME}model") == "bert" and "bos_token" in roles:
        roles = {"cls_token": roles.pop("bos_token"), **roles}
    return roles


def read_tokenizer(path: Path) -> HuggingFace:
    """Return the tokenizer of a file.

    bos is what it puts before a text, and eos the first of the ids that end a turn. Raises
    CheckpointError for a kind that is not read, and a vocabulary that is damaged.
    """
    contents = gguf.open_file(path)
    metadata, roles = contents.metadata, describe_pieces(path)
    tokens, kinds, kind = _tokens(path, metadata), _kinds(path, metadata), metadata[f"{HOME}model"]
    if kind == "gpt2":
        document = _byte_level(path, metadata, tokens)
    elif kind == "llama":
        gemma = str(metadata.get("general.architecture")).startswith("gemma")
        document = _sentencepiece(path, metadata, tokens, gemma=gemma)
    elif kind == "t5":
        document = pipelines.sentencepiece(_proto(path, metadata, tokens, modelproto.UNIGRAM))
    elif kind == "bert":
        document = _word_piece(tokens, kinds, roles)
    else:
        raise CheckpointError(
            f"{path}: {HOME}model={kind!r:.40} is not read; known are gpt2, llama, t5 and bert"
        )
    document["added_tokens"] = [
        {"id": i, **pipelines.added_token(tokens[i], special=bool(kinds[i] == CONTROL))}
        for i in np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED)).tolist()
    ]
    generation = read_generation(path)
    ids = {name: generation.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids["eos"] = next(iter(ids["eos"] or ()), None)
    if kind == "bert":
        ids["bos"], ids["eos"] = (tokens.index(roles[role]) for role in ("cls_token", "sep_token"))
    else:
        begins = kind == "llama" or metadata.get(f"{HOME}pre") in BEGIN
        asked = {
            "bos_token": metadata.get(f"{HOME}add_bos_token", begins),
            "eos_token": metadata.get(f"{HOME}add_eos_token", kind == "t5"),
        }
        begin, end = ([roles[role]] if on and role in roles else [] for role, on in asked.items())
        if begin or end:
            used = {name: tokens.index(name) for name in (*begin, *end)}
            document["post_processor"] = pipelines.template(begin, end, used)
        ids["bos"] = ids["bos"] if begin else None
    rows = contents.tensors["token_embd.weight"].shape[0]
    try:
        raw = json.dumps(document, ensure_ascii=False).encode()
        return HuggingFace(raw, Special(**ids), roles=roles, vocab_size=rows)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _tokens(path: Path, metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get(f"{HOME}tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{path}: {HOME}tokens is no list of texts")
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))
        raise CheckpointError(f"{path}: {HOME}tokens holds {twice!r:.60} twice")
    return tokens


def _kinds(path: Path, metadata: Mapping[str, Any]) -> np.ndarray:
    return _numbers(path, metadata, "token_type", NORMAL)


def _numbers(
    path: Path, metadata: Mapping[str, Any], name: str, default: int | float
) -> np.ndarray:
    """Return an array with a number for each piece."""
    count = len(metadata[f"{HOME}tokens"])
    stored = metadata.get(HOME + name)
    if stored is None:
        return np.full(count, default)
    if not isinstance(stored, np.ndarray) or stored.shape != (count,):
        raise CheckpointError(f"{path}: {HOME}{name} has not one number for each of {count} pieces")
    return stored


def _merges(path: Path, metadata: Mapping[str, Any]) -> list[list[str]]:
    stored = metadata.get(f"{HOME}merges")
    if not isinstance(stored, list):
        raise CheckpointError(f"{path}: {HOME}merges is no list of texts")
    merges = [str(merge).split(" ") for merge in stored]
    if wrong := next((m for m in merges if len(m) != 2), None):
        raise CheckpointError(f"{path}: {' '.join(wrong)!r:.60} is no merge of two pieces")
    return merges


def _byte_level(path: Path, metadata: Mapping[str, Any], tokens: Sequence[str]) -> Json:
    pre = metadata.get(f"{HOME}pre", GPT2)
    if not isinstance(pre, str) or pre not in CUTS:
        raise CheckpointError(
            f"{path}: {HOME}pre={pre!r:.40} is not known{nearest(str(pre), CUTS)}; known are "
            f"{', '.join(sorted(CUTS))}"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    about = {"ignore_merges": True} if pre in WHOLE else {}
    model = pipelines.bpe(vocab, _merges(path, metadata), **about)
    document = pipelines.byte_level({}, [])
    document["pre_tokenizer"] = pre_tokenizer(CUTS[pre])
    document["normalizer"] = {"type": "NFC"} if pre in COMPOSED else None
    return document | {"model": model}


def pre_tokenizer(cuts: Sequence[str]) -> Json:
    """Return the step of a tokenizer.json that cuts a text as `CUTS` says."""
    own = pipelines.byte_level({}, [])["pre_tokenizer"]
    steps = [
        own
        if cut == GPT2
        else {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
        for cut in cuts
    ]
    if GPT2 not in cuts:
        steps.append(own | {"use_regex": False})
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _proto(path: Path, metadata: Mapping[str, Any], tokens: list[str], model_type: int) -> Proto:
    """Return the sentencepiece model that a file's pieces are of."""
    scores, kinds = _numbers(path, metadata, "scores", 0.0), _kinds(path, metadata)
    pieces = [Piece(*row) for row in zip(tokens, scores.tolist(), kinds.tolist(), strict=True)]
    unknown = metadata.get(f"{HOME}unknown_token_id")
    if type(unknown) is not int or not 0 <= unknown < len(tokens):
        unknown = next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), 0)
    charsmap = metadata.get(f"{HOME}precompiled_charsmap")
    return Proto(
        pieces=tuple(pieces),
        model_type=model_type,
        unk=unknown,
        byte_fallback=any(piece.kind == BYTE for piece in pieces),
        suffix=False,
        charsmap=charsmap.tobytes() if isinstance(charsmap, np.ndarray) else b"",
        dummy_prefix=bool(metadata.get(f"{HOME}add_space_prefix", True)),
        extra_spaces=bool(metadata.get(f"{HOME}remove_extra_whitespaces", False)),
        escape=True,
    )


def _sentencepiece(
    path: Path, metadata: Mapping[str, Any], tokens: list[str], *, gemma: bool
) -> Json:
    proto = _proto(path, metadata, tokens, modelproto.BPE)
    pieces = proto.pieces
    if gemma:
        # A run of spaces is written as such in the file, and with their mark everywhere else.
        runs = [
            p._replace(name=SPACE * len(p.name)) if not p.name.strip(" ") else p for p in pieces
        ]
        same = replace(proto, pieces=tuple(runs))
        return pipelines.gemma(same, {"unk_token": tokens[proto.unk]})
    document = pipelines.llama(proto, legacy=False, add_prefix_space=proto.dummy_prefix)
    given = metadata.get(f"{HOME}merges")
    merges = _merges(path, metadata) if given else _by_score(pieces)
    document["model"]["merges"] = [list(merge) for merge in merges]
    return document


def _by_score(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return the merges that scores stand for; of equal ones the longer first part comes first."""
    score = {piece.name: piece.score for piece in pieces}
    ids = {piece.name: i for i, piece in enumerate(pieces)}
    merges = pipelines.merges(pieces)
    merges.sort(key=lambda m: (ids[m[0] + m[1]], ids[m[0]], ids[m[1]]))
    merges.sort(key=lambda m: (score[m[0] + m[1]], len(m[0]), len(m[1])), reverse=True)
    return merges


def _word_piece(tokens: Sequence[str], kinds: np.ndarray, roles: Json) -> Json:
    """Return BERT's; a piece that begins a word has a mark in the file, one within has none."""
    words = {}
    for i, token in enumerate(tokens):
        if kinds[i] != NORMAL or (token.startswith("[") and token.endswith("]")):
            words[token] = i
        elif token.startswith(SPACE):
            words[token.removeprefix(SPACE)] = i
        else:
            words[f"##{token}"] = i
    kind = KINDS["BertTokenizer"]
    assert kind.words is not None
    # A file does not say whether it knows capitals, but its pieces do.
    cased = any(word != word.lower() for word in words if not word.startswith("["))
    roles |= {
        role: name for role, name in kind.names.items() if role not in roles and name in words
    }
    return kind.words(words, {"do_lower_case": not cased}, roles)
