"""Our tokenizers as tokenizer.json files that give other programs the same ids and texts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxgen.errors import ConfigError
from jaxgen.tokens import modelproto, pipelines
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.marks import MASKS, SENTINEL, SENTINELS
from jaxgen.tokens.modelproto import CONTROL, NORMAL, USER_DEFINED, Proto
from jaxgen.tokens.piece_bytes import BYTE_OF
from jaxgen.tokens.pieces import SPACE, Pieces
from jaxgen.tokens.pipelines import Json
from jaxgen.tokens.plain import Bytes, Chars
from jaxgen.tokens.protocol import Tokenizer

BYTES = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}  # names of ids that had none


class Exported(NamedTuple):
    """A tokenizer.json, and {"mask_token": ..., ...} as tokenizer_config.json names its pieces."""

    file: bytes
    roles: dict[str, str]


def tokenizer_json(tokenizer: Tokenizer, *, rows: int, topology: str) -> Exported:
    """Return a tokenizer as a file of the `tokenizers` library.

    rows: ids that the model knows; those beyond the tokenizer's own are its mask, or T5's
    sentinels. topology: what a decoder reads has no end yet, what others read has one. Raises
    ConfigError for a tokenizer that has no such form.
    """
    if isinstance(tokenizer, HuggingFace):
        return _extended(tokenizer, rows, topology)
    if isinstance(tokenizer, Bytes):
        document, special, roles = _bytes(), BYTES, {}
    elif isinstance(tokenizer, Chars):
        document, special, roles = _chars(tokenizer), {}, {}
    elif isinstance(tokenizer, Pieces):
        document, special, roles = _pieces(tokenizer)
    else:
        kind = type(tokenizer).__name__.lower()
        raise ConfigError(f"a {kind} tokenizer has no form as a tokenizer.json")
    more = _beyond(rows - tokenizer.vocab_size, topology)
    for number, name in enumerate(more):
        row = pipelines.added_token(name) | {"id": tokenizer.vocab_size + number}
        document["added_tokens"].append(row)
    ids = {row["content"]: row["id"] for row in document["added_tokens"]}
    document["post_processor"] = _around(special, ids, topology)
    roles |= {f"{role}_token": name for role, name in special.items()}
    return Exported(
        json.dumps(document, ensure_ascii=False).encode(), _roles(roles, special, more, topology)
    )


def ends(tokenizer: Tokenizer, topology: str) -> tuple[list[int], list[int]]:
    """Return the ids that an exported tokenizer puts before a text, and after it."""
    own = tokenizer.around() if isinstance(tokenizer, HuggingFace) else ([], [])
    if own != ([], []):
        return own
    begin, end = ([] if i is None else [i] for i in (tokenizer.special.bos, tokenizer.special.eos))
    return begin, end if topology != "decoder" else []


def _extended(tokenizer: HuggingFace, rows: int, topology: str) -> Exported:
    names = {i: name for name, i in tokenizer.vocabulary().items()}
    special = {
        role: names[token] for role, token in vars(tokenizer.special).items() if token is not None
    }
    vocabulary = tokenizer.vocabulary()
    has = any(name in vocabulary for name in (*MASKS, SENTINEL.format(0)))
    more = [] if has else _beyond(rows - tokenizer.vocab_size, topology)
    model = tokenizer.model
    if more:
        model = HuggingFace(model, added=[pipelines.added_token(name) for name in more]).model
    around = _around(special, vocabulary, topology)
    if around and tokenizer.around() == ([], []):
        model = json.dumps(json.loads(model) | {"post_processor": around}).encode()
    roles = {f"{role}_token": name for role, name in special.items()} | tokenizer.roles
    return Exported(model, _roles(roles, special, more, topology))


def _beyond(room: int, topology: str) -> list[str]:
    """Return the names of a model's ids beyond its tokenizer's, as the objectives number them."""
    if topology == "encoder_decoder" and room >= SENTINELS:
        return [SENTINEL.format(i) for i in range(SENTINELS)]
    return [MASKS[0]] if topology != "decoder" and room > 0 else []


def _around(special: Mapping[str, str], ids: Mapping[str, int], topology: str) -> Json | None:
    begin = [special["bos"]] if "bos" in special else []
    end = [special["eos"]] if "eos" in special and topology != "decoder" else []
    return pipelines.template(begin, end, ids, between=end) if begin or end else None


def _roles(
    roles: Mapping[str, str], special: Mapping[str, str], more: list[str], topology: str
) -> dict[str, str]:
    names = dict(roles)
    if topology == "encoder" and "bos" in special and "eos" in special:
        names = {"cls_token": special["bos"], "sep_token": special["eos"]} | names
    if more[:1] == [MASKS[0]]:
        names["mask_token"] = MASKS[0]
    return names


def _bytes() -> Json:
    names = {byte: name for name, byte in BYTE_OF.items()}
    document = pipelines.byte_level({names[byte]: byte for byte in range(256)}, [], use_regex=False)
    special = vars(Bytes.special)
    document["added_tokens"] = [
        pipelines.added_token(name) | {"id": special[role]} for role, name in BYTES.items()
    ]
    return document


def _chars(tokenizer: Chars) -> Json:
    ids = {character: i for i, character in enumerate(tokenizer.characters)}
    return pipelines.document(pipelines.bpe(ids, []), decoder={"type": "Fuse"})


def _pieces(tokenizer: Pieces) -> tuple[Json, dict[str, str], dict[str, str]]:
    """Return (file, names of special ids, further roles) of a sentencepiece model.

    Its pieces are written with spaces for U+2581, so that a text's own U+2581 is not mistaken for
    one: no other program has to undo it.
    """
    proto = modelproto.read_proto(tokenizer.model)
    if proto.suffix or proto.model_type not in (modelproto.UNIGRAM, modelproto.BPE):
        raise ConfigError(
            "a sentencepiece model that puts spaces behind words, or whose pieces are words or "
            "characters, has no form as a tokenizer.json; train another tokenizer"
        )
    spaced = [
        piece._replace(name=piece.name.replace(SPACE, " "))
        if piece.kind in (NORMAL, USER_DEFINED)
        else piece
        for piece in proto.pieces
    ]
    cuts = []
    if proto.model_type == modelproto.BPE:
        user = [piece.name for piece in spaced if piece.kind == USER_DEFINED]
        model = pipelines.bpe(
            {piece.name: i for i, piece in enumerate(spaced)},
            pipelines.merges_by_score(spaced),
            unk_token=spaced[proto.unk].name,
            byte_fallback=proto.byte_fallback,
            fuse_unk=True,
            ignore_merges=bool(user),
        )
        if user:
            pattern = "|".join(map(re.escape, sorted(user, key=len, reverse=True)))
            cuts.append(_split(pattern, "Isolated"))
    else:
        scored = [piece.score for piece in spaced if piece.kind == NORMAL]
        low = min(scored, default=0.0)
        model = pipelines.unigram(
            [[p.name, p.score if p.kind in (NORMAL, USER_DEFINED) else low] for p in spaced],
            proto.unk,
            byte_fallback=proto.byte_fallback,
        )
        # The library would find these names in a text; sentencepiece finds them in none.
        silent = [p.name for p in spaced if p.kind not in (NORMAL, USER_DEFINED)]
        cuts.append(_split(_inside(silent), "MergedWithPrevious"))
    decoders: list[Json] = [{"type": "ByteFallback"}] if proto.byte_fallback else []
    decoders.append({"type": "Fuse"})
    if proto.dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    document = pipelines.document(
        model,
        normalizer=_sequence("normalizers", list(_normalizers(tokenizer, proto))),
        pre_tokenizer=_sequence("pretokenizers", cuts),
        decoder=_sequence("decoders", decoders),
    )
    special = {role: spaced[i].name for role, i in vars(tokenizer.special).items() if i is not None}
    document["added_tokens"] = [
        pipelines.added_token(piece.name) | {"id": i}
        for i, piece in enumerate(spaced)
        if piece.kind == CONTROL or i == proto.unk or piece.name in special.values()
    ]
    return document, special, {"unk_token": spaced[proto.unk].name}


def _normalizers(tokenizer: Pieces, proto: Proto) -> Iterator[Json]:
    if proto.charsmap:
        # The library's Precompiled takes letters and the marks on them for one.
        yield {"type": "Lowercase"} if _lowercases(tokenizer) else pipelines.precompiled(proto)
    if proto.extra_spaces:
        yield pipelines.replaced({"Regex": r"\A +| +\z"}, "")
        yield pipelines.replaced({"Regex": " {2,}"}, " ")
    if not tokenizer.exact:
        yield pipelines.replaced(SPACE, " ")  # which sentencepiece takes for a space
    if proto.dummy_prefix:
        yield {"type": "Prepend", "prepend": " "}


def _lowercases(tokenizer: Pieces) -> bool:
    """Return whether the model's normaliser makes small letters, and nothing else."""
    letters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    text = "".join(letter for letter in letters if letter not in f"\0{SPACE}")
    lowered = "".join(letter.lower() for letter in text)
    return tokenizer.normalize(text) == lowered.replace(" ", SPACE)


def _inside(names: list[str]) -> str:
    """Return a pattern for the first character of a name, where the rest of it follows."""
    rest: dict[str, list[str]] = {}
    for name in names:
        rest.setdefault(name[0], []).append(re.escape(name[1:]))
    return "|".join(f"{re.escape(first)}(?={'|'.join(more)})" for first, more in rest.items())


def _split(pattern: str, behavior: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _sequence(name: str, steps: list[Json]) -> Json | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", name: steps}
