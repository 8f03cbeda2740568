"""tokenizer.json files of published kinds, made of older files, as transformers' converters do.

Every function returns the file as a dict. Sources: transformers' `models/*/tokenization_*.py` and
`convert_slow_tokenizer.py`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.tokens.modelproto import BPE, CONTROL, NORMAL, USER_DEFINED, Piece, Proto

SPACE = "\u2581"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTINELS = 100  # of T5, where its config names no number

Json = dict[str, Any]
Names = Mapping[str, str]  # {"bos_token": "<s>", ...}


def document(model: Json, **parts: Any) -> Json:
    """Return a tokenizer.json; parts: normalizer, pre_tokenizer, post_processor, decoder."""
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    empty: Json = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    return empty | {name: parts.pop(name, None) for name in names} | {"model": model} | parts


def template(begin: Sequence[str], end: Sequence[str], ids: Mapping[str, int], *,
             between: Sequence[str] | None = None, second: int = 1) -> Json:  # fmt: skip
    """Return the post-processor that puts pieces before and after a text, and around two.

    between: the pieces between two texts, None for `end` and then `begin`. second: the type id of
    the second text.
    """

    def mark(name: str, kind: int) -> Json:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def text(side: str, kind: int) -> Json:
        return {"Sequence": {"id": side, "type_id": kind}}

    first = [*(mark(name, 0) for name in begin), text("A", 0)]
    last = [text("B", second), *(mark(name, second) for name in end)]
    if between is None:
        middle = [*(mark(name, 0) for name in end), *(mark(name, second) for name in begin)]
    else:
        middle = [mark(name, 0) for name in between]
    used = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (*begin, *end)}
    return {
        "type": "TemplateProcessing",
        "single": [*first, *(mark(name, 0) for name in end)],
        "pair": [*first, *middle, *last],
        "special_tokens": used,
    }


def byte_level(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], *,
               add_prefix_space: bool = False, use_regex: bool = True) -> Json:  # fmt: skip
    """Return GPT-2's: BPE on bytes."""
    step = _byte_level(add_prefix_space, use_regex=use_regex)
    return document(bpe(vocab, merges), pre_tokenizer=step, decoder=_byte_level(True))


def qwen2(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], *,
          add_prefix_space: bool = False) -> Json:  # fmt: skip
    """Return Qwen 2's: BPE on bytes, after NFC and its own cut into words."""
    cut = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    steps = [cut, _byte_level(add_prefix_space, use_regex=False)]
    return document(
        bpe(vocab, merges),
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder=_byte_level(True),
    )


def roberta(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], names: Names, *,
            add_prefix_space: bool = False, trim_offsets: bool = True) -> Json:  # fmt: skip
    """Return RoBERTa's and BART's: GPT-2's between cls and sep."""
    converted = byte_level(vocab, merges, add_prefix_space=add_prefix_space)
    about = {"trim_offsets": trim_offsets, "add_prefix_space": add_prefix_space}
    return converted | {"post_processor": _between_ends(vocab, names, **about)}


def word_piece(
    vocab: Mapping[str, int],
    names: Names,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    chinese: bool,
    double: bool = False,
) -> Json:
    """Return BERT's; double: MPNet's, with two seps between two texts."""
    model = {
        "type": "WordPiece",
        "unk_token": names["unk_token"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": dict(vocab),
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": chinese,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    return document(
        model,
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_between_ends(vocab, names) if double else _bert_ends(names, vocab),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def llama(proto: Proto, *, legacy: bool, add_prefix_space: bool) -> Json:
    """Return that of Llama 1 and 2."""
    scheme = ("always" if legacy else "first") if add_prefix_space else "never"
    model = bpe(_ids(proto), merges(proto.pieces), byte_fallback=True, fuse_unk=True)
    return document(
        model,
        pre_tokenizer=_metaspace(scheme, split=False),
        decoder=_decoder(byte_fallback=True, strip=add_prefix_space),
    )


def gemma(proto: Proto, names: Names) -> Json:
    """Return Gemma's."""
    model = bpe(
        *(_ids(proto), merges(proto.pieces)),
        unk_token=names["unk_token"],
        byte_fallback=True,
        fuse_unk=True,
    )
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    return document(
        model,
        normalizer=replaced(" ", SPACE),
        pre_tokenizer=cut | {"invert": False},
        decoder=_decoder(byte_fallback=True, strip=False),
    )


def t5(proto: Proto, *, extra_ids: int, eos: str) -> Json:
    """Return T5's, whose sentinels come after the pieces, the last first."""
    rows, _ = _scored(proto)
    rows += [[f"<extra_id_{i}>", 0.0] for i in reversed(range(extra_ids))]
    ids = {name: i for i, (name, _) in enumerate(rows)}
    return _words(rows, 2, proto, template([], [eos], ids, second=0, between=[eos]))


def xlm_roberta(proto: Proto, names: Names) -> Json:
    """Return XLM-RoBERTa's, which numbers its special pieces as fairseq did."""
    rows, ids = _fairseq(proto, names, ())
    begin, end = [names["bos_token"]], [names["eos_token"]]
    return _words(rows, 3, proto, template(begin, end, ids, second=0, between=[*end, *end]))


def albert(proto: Proto, names: Names, *, lowercase: bool, accents: bool, prefix: bool) -> Json:
    """Return ALBERT's, whose quotes and letters are made simpler before its map of characters.

    accents: whether they are kept. prefix: whether a text begins as a word does.
    """
    rows, ids = _scored(proto)
    scheme = "always" if prefix else "never"
    steps = [replaced("``", '"'), replaced("''", '"')]
    steps += [] if accents else [{"type": "NFKD"}, {"type": "StripAccents"}]
    steps += [{"type": "Lowercase"}] if lowercase else []
    steps += [precompiled(proto)] if proto.charsmap else []
    cuts = [{"type": "WhitespaceSplit"}, _metaspace(scheme, split=True)]
    return document(
        unigram(rows, 1, byte_fallback=False),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer={"type": "Sequence", "pretokenizers": cuts},
        post_processor=_bert_ends(names, ids),
        decoder=_metaspace(scheme, split=True),
    )


def deberta(proto: Proto, names: Names, *, lowercase: bool, punctuation: bool,
            prefix: bool) -> Json:  # fmt: skip
    """Return that of DeBERTa 2 and 3; punctuation: whether each such mark is a word."""
    rows, ids = _scored(proto)
    unknown = [names["unk_token"], 0.0]
    scheme = "always" if prefix else "first"
    steps = [{"type": "Lowercase"}] if lowercase else []
    steps += [replaced({"Regex": r"\s{2,}|[\n\r\t]"}, " "), {"type": "NFC"}]
    steps += [{"type": "Strip", "strip_left": False, "strip_right": True}]
    cuts = [{"type": "Punctuation", "behavior": "Isolated"}] if punctuation else []
    cuts += [_metaspace(scheme, split=True)]
    return document(
        unigram(rows, rows.index(unknown) if unknown in rows else proto.unk, byte_fallback=False),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer={"type": "Sequence", "pretokenizers": cuts},
        post_processor=_bert_ends(names, ids),
        decoder=_metaspace(scheme, split=True),
    )


def mbart(proto: Proto, names: Names, codes: Sequence[str], *, words: bool) -> Json:
    """Return mBART's, whose languages come after the pieces; words: cut at all white space."""
    rows, ids = _fairseq(proto, names, codes)
    build = _words if words else _spaced
    return build(rows, 3, proto, template([], [names["eos_token"]], ids))


def pegasus(proto: Proto, names: Names, *, offset: int, sentence: str) -> Json:
    """Return Pegasus', whose pieces come after those that only its training had.

    sentence: the mask of a sentence; that of words is a role.
    """
    first = [names["pad_token"], names["eos_token"], sentence, names["mask_token"]]
    rows: list[list[Any]] = [[name, 0.0] for name in first]
    rows += [[f"<unk_{i}>", -100.0] for i in range(2, offset)]
    rows += [[piece.name, piece.score] for piece in proto.pieces[2:]]
    ids = {name: i for i, (name, _) in enumerate(rows)}
    around = template([], [names["eos_token"]], ids, between=[])
    return _spaced(rows, ids[names["unk_token"]], proto, around)


def sentencepiece(proto: Proto, *, legacy: bool = True) -> Json:
    """Return that of any other sentencepiece model: it encodes as sentencepiece does."""
    user = [piece.name for piece in proto.pieces if piece.kind == USER_DEFINED]
    if proto.model_type == BPE:
        model = bpe(
            *(_ids(proto), merges_by_score(proto.pieces)),
            unk_token=proto.pieces[proto.unk].name,
            byte_fallback=proto.byte_fallback,
            fuse_unk=True,
            ignore_merges=bool(user),
        )
    else:
        model = unigram(_scored(proto)[0], proto.unk, byte_fallback=proto.byte_fallback)
    steps = [precompiled(proto)] if proto.charsmap else []
    if proto.extra_spaces:
        steps += [replaced({"Regex": r"\A +| +\z"}, ""), replaced({"Regex": " {2,}"}, " ")]
    if proto.escape:
        steps.append(replaced(" ", SPACE))
    cuts = []
    if proto.dummy_prefix:
        if legacy:  # Metaspace puts none before a space
            steps.append(replaced({"Regex": rf"\A{SPACE}"}, SPACE * 2))
        cuts.append(_metaspace("always" if legacy else "first", split=False))
    if user:
        pattern = "|".join(map(re.escape, sorted(user, key=len, reverse=True)))
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        cuts.append(cut | {"invert": False})
    return document(
        model,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer={"type": "Sequence", "pretokenizers": cuts} if cuts else None,
        decoder=_decoder(byte_fallback=proto.byte_fallback, strip=proto.dummy_prefix),
    )


def added(proto: Proto) -> list[Json]:
    """Return the rows of a model's control and user-defined pieces, as added tokens."""
    kinds = (CONTROL, USER_DEFINED)
    return [
        added_token(piece.name, special=piece.kind == CONTROL)
        for piece in proto.pieces
        if piece.kind in kinds
    ]


def added_token(content: str, *, special: bool = True, normalized: bool = False) -> Json:
    """Return the row of a piece that is found in texts before all others."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"content": content, **flags, "normalized": normalized, "special": special}


def bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **about: Any) -> Json:
    """Return a BPE model; about: what is not as the library has it by itself."""
    return {"type": "BPE", **about, "vocab": dict(vocab), "merges": [list(m) for m in merges]}


def unigram(rows: Sequence[Sequence[Any]], unk: int, *, byte_fallback: bool) -> Json:
    """Return a unigram model of rows [piece, score]."""
    return {"type": "Unigram", "unk_id": unk, "vocab": rows, "byte_fallback": byte_fallback}


def merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return every merge of two pieces into a third, in the order of the thirds' ids."""
    names = {piece.name for piece in pieces}
    return [
        (name[:cut], name[cut:])
        for name, *_ in pieces
        for cut in range(1, len(name))
        if name[:cut] in names and name[cut:] in names
    ]


def merges_by_score(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return every merge of two normal pieces into a third, the best third first."""
    normal = [piece for piece in pieces if piece.kind == NORMAL]
    return merges(sorted(normal, key=lambda piece: -piece.score))


def _fairseq(
    proto: Proto, names: Names, codes: Sequence[str]
) -> tuple[list[list[Any]], dict[str, int]]:
    """Return (rows of a unigram vocabulary, {piece: id}) as fairseq numbers them."""
    first = ("bos_token", "pad_token", "eos_token", "unk_token")
    rows: list[list[Any]] = [[names[name], 0.0] for name in first]
    rows += [[piece.name, piece.score] for piece in proto.pieces[3:]]
    rows += [[code, 0.0] for code in (*codes, names["mask_token"])]
    return rows, {name: i for i, (name, _) in enumerate(rows)}


def _spaced(rows: list[list[Any]], unk: int, proto: Proto, post_processor: Json) -> Json:
    steps = [precompiled(proto)] if proto.charsmap else []
    steps.append(replaced({"Regex": " {2,}"}, " "))
    return document(
        unigram(rows, unk, byte_fallback=False),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=_metaspace("always", split=True),
        post_processor=post_processor,
        decoder=_metaspace("always", split=True),
    )


def _words(rows: list[list[Any]], unk: int, proto: Proto, post_processor: Json) -> Json:
    cuts = [{"type": "WhitespaceSplit"}, _metaspace("always", split=True)]
    return document(
        unigram(rows, unk, byte_fallback=False),
        normalizer=precompiled(proto) if proto.charsmap else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": cuts},
        post_processor=post_processor,
        decoder=_metaspace("always", split=True),
    )


def _between_ends(vocab: Mapping[str, int], names: Names, *, trim_offsets: bool = True,
                  add_prefix_space: bool = False) -> Json:  # fmt: skip
    """Return RoBERTa's post-processor, with two seps between two texts."""
    sep, cls = names["sep_token"], names["cls_token"]
    ends = {"sep": [sep, vocab[sep]], "cls": [cls, vocab[cls]]}
    about = {"trim_offsets": trim_offsets, "add_prefix_space": add_prefix_space}
    return {"type": "RobertaProcessing", **ends, **about}


def _bert_ends(names: Names, ids: Mapping[str, int]) -> Json:
    return template([names["cls_token"]], [names["sep_token"]], ids, between=[names["sep_token"]])


def _scored(proto: Proto) -> tuple[list[list[Any]], dict[str, int]]:
    """Return (rows of a unigram vocabulary, {piece: id}) as a model has them."""
    return [[piece.name, piece.score] for piece in proto.pieces], _ids(proto)


def _ids(proto: Proto) -> dict[str, int]:
    return {piece.name: i for i, piece in enumerate(proto.pieces)}


def _byte_level(add_prefix_space: bool, *, use_regex: bool = True) -> Json:
    about = {"add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel", **about}


def _metaspace(scheme: str, *, split: bool) -> Json:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def replaced(pattern: str | Json, content: str) -> Json:
    """Return the step that replaces a text, or {"Regex": ...}."""
    pattern = {"String": pattern} if isinstance(pattern, str) else pattern
    return {"type": "Replace", "pattern": pattern, "content": content}


def precompiled(proto: Proto) -> Json:
    """Return the normaliser of a model that has a map of characters."""
    coded = base64.b64encode(proto.charsmap).decode()
    return {"type": "Precompiled", "precompiled_charsmap": coded}


def _decoder(*, byte_fallback: bool, strip: bool) -> Json:
    steps = [replaced(SPACE, " ")]
    steps += [{"type": "ByteFallback"}] if byte_fallback else []
    steps += [{"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    return {"type": "Sequence", "decoders": steps}
