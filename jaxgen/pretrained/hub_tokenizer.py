"""The tokenizer of a Hugging Face folder, of whichever files it is published as.

All become one tokenizer.json, with the pieces, flags and roles that tokenizer_config.json,
special_tokens_map.json and added_tokens.json add, as transformers' `AutoTokenizer` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.config import Topology
from jaxgen.errors import CheckpointError
from jaxgen.pretrained import gguf_tokenizer, hub_read
from jaxgen.pretrained.generation_config import read_generation_config
from jaxgen.pretrained.gguf_read import is_gguf
from jaxgen.pretrained.tokenizer_kinds import ANY, CONFIG, FILE, Kind, class_of, kind_of
from jaxgen.tokens import Special, Tokenizer, folder, marian, modelproto, pipelines
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.pipelines import Json

ROLES, ADDED = "special_tokens_map.json", "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PROTOS = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
VOCAB, MERGES, WORDS = "vocab.json", "merges.txt", "vocab.txt"
TIKTOKEN = "tiktoken.model"
TYPES = "token_type_ids"
MAX_CONFIG = 100 << 20


def has_hub_tokenizer(home: Path) -> bool:
    """Return whether a Hugging Face folder has files of a tokenizer, or a GGUF file has one."""
    if is_gguf(home):
        return gguf_tokenizer.has_tokenizer(home)
    pairs = ((VOCAB, MERGES), (WORDS,), (TIKTOKEN,))
    alone = ((name,) for name in (FILE, *PROTOS))
    complete = any(all((home / name).exists() for name in names) for names in (*alone, *pairs))
    return complete or marian.is_marian(home)


def read_hub_tokenizer(home: Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder or a GGUF file.

    bos is what the tokenizer itself puts before a text, and of an encoder, which writes none, eos
    is what it puts after one; else eos is that of generation_config.json or config.json, as pad is.
    Where it has more ids than the model, texts that need one of them are refused. Raises
    CheckpointError if there is none, or its files are damaged or of a kind that is not read.
    """
    if is_gguf(home):
        return gguf_tokenizer.read_tokenizer(home)
    # transformers reads Marian's own files, whatever tokenizer.json was made of them.
    own = (home / marian.TARGET).exists() or not (home / FILE).exists()
    if marian.is_marian(home) and own:
        tokenizer = marian.read_marian(home)
        _, config = hub_read.read_config(home)
        if tokenizer.vocab_size > config.V:
            raise CheckpointError(
                f"{home / VOCAB} has {tokenizer.vocab_size} pieces, but the model knows "
                f"{config.V}: they are not of one model"
            )
        ids = _special_ids(home, tokenizer.vocab_size) | {"bos": None}
        return marian.Marian(tokenizer.model, replace(tokenizer.special, **ids))
    about, name = tokenizer_about(home)
    if name == "M2M100Tokenizer" and (home / VOCAB).exists():
        return _with_languages(home, about)
    kind = kind_of(home, about)
    names = {**kind.names, **_roles(about)}
    try:
        _, config = hub_read.read_config(home)
        roles = {role: name for role, name in names.items() if name is not None}
        special = partial(_special, home, config.topology)
        build = partial(HuggingFace, special=special, roles=roles, vocab_size=config.V)
        rows = _added(home, about, names)
        typed = TYPES in about.get("model_input_names", [TYPES] * kind.types)
        with_types = bytes if typed or config.embed.types < 2 else _untyped
        if (home / FILE).exists():
            return build(with_types(_bytes(home / FILE)), added=rows)
        base, more = _base(home, kind, about, names)
        declared = about.get("added_tokens_decoder") or {}
        known = {row["content"] for row in rows} if declared else set()
        named = set(roles.values())
        rows += [
            row | {"special": row["special"] or row["content"] in named}
            for row in more
            if row["content"] not in known
        ]
        plain = HuggingFace(json.dumps(base).encode(), added=rows)
        return build(with_types(_ended(plain, kind, about, names)))
    except CheckpointError as error:
        where = next((home / name for name in (FILE, *PROTOS) if (home / name).exists()), home)
        message = str(error)
        if not message.startswith(str(home)):
            message = f"{where}: {message}"
        raise CheckpointError(message) from error


def tokenizer_about(home: Path) -> tuple[Json, str | None]:
    """Return (tokenizer_config.json, the class of tokenizers that transformers takes)."""
    about = _about(home)
    return about, class_of(home, about)


def _with_languages(home: Path, about: Mapping[str, Any]) -> Tokenizer:
    """Return M2M-100's tokenizer."""
    languages = about.get("language_codes", "m2m100")
    if languages not in marian.LANGUAGES:
        known = ", ".join(marian.LANGUAGES)
        raise CheckpointError(
            f"{home / CONFIG}: language_codes={languages!r:.40} is none of {known}"
        )
    tokenizer = marian.read_marian(home, languages)
    ids = _special_ids(home, tokenizer.vocab_size) | {"bos": None}
    return marian.Marian(tokenizer.model, replace(tokenizer.special, **ids))


def named_pieces(home: Path) -> dict[str, str]:
    """Return {"bos_token": name, ...} of a folder, with what its kind names by itself."""
    about = _about(home)
    kind = kind_of(home, about) if hub_read.is_hub(home) and not is_gguf(home) else ANY
    return {role: name for role, name in {**kind.names, **_roles(about)}.items() if name}


def _special(home: Path, topology: Topology, tokenizer: HuggingFace) -> Special:
    ids = _special_ids(home, tokenizer.vocab_size)
    begin, end = (part[0] if len(part) == 1 else None for part in tokenizer.around())
    if topology == "encoder" or "eos" not in ids:
        ids["eos"] = end
    return Special(**ids | {"bos": begin})


def _special_ids(home: Path, vocab_size: int) -> dict[str, int | None]:
    """Return the ids that the folder names, of those that the tokenizer has."""
    config, _ = read_generation_config(home)
    eos = next(iter(config.eos_token_id), None)
    named = {"bos": config.bos_token_id, "eos": eos, "pad": config.pad_token_id}
    return {name: i for name, i in named.items() if i is not None and i < vocab_size}


def _about(home: Path) -> Json:
    """Return tokenizer_config.json, with what special_tokens_map.json adds to an old one."""
    if is_gguf(home):
        return gguf_tokenizer.describe_pieces(home)
    about = _json(home / CONFIG)
    if "added_tokens_decoder" not in about:
        about = about | _json(home / ROLES)
    return about


def _json(path: Path) -> Json:
    if not path.exists():
        return {}
    return files.read_json(path, "tokenizer file", MAX_CONFIG)


def _roles(about: Mapping[str, Any]) -> dict[str, str | None]:
    """Return {"mask_token": name, ...} of what a tokenizer_config.json names; None: it has none."""
    roles: dict[str, str | None] = {}
    for role, value in about.items():
        if role in NAMED or (role.endswith("_token") and isinstance(value, str | dict)):
            name = value.get("content") if isinstance(value, dict) else value
            if name is None or isinstance(name, str):
                roles[role] = name or None
    more = about.get("extra_special_tokens")
    if isinstance(more, dict):
        roles |= {role: name for role, name in more.items() if isinstance(name, str)}
    return roles


def _added(home: Path, about: Mapping[str, Any], names: Mapping[str, str | None]) -> list[Json]:
    """Return the rows of the pieces that a folder adds, in the order of their ids."""
    rows: dict[str, Json] = {}
    own = _json(home / FILE).get("added_tokens") or []
    declared = about.get("added_tokens_decoder")
    if isinstance(declared, dict):
        for _, value in sorted(declared.items(), key=lambda item: _number(item[0])):
            row = _row(value, f"{CONFIG}: added_tokens_decoder")
            rows[row["content"]] = row
    else:
        marks = {name for name in names.values() if name} | set(_extra(about))
        for name, _ in sorted(_json(home / ADDED).items(), key=lambda item: _number(item[1])):
            special = name in marks
            rows[name] = pipelines.added_token(name, special=special, normalized=not special)
    # Names alone say no flags: a piece that is there keeps its own.
    rows = {row["content"]: _row(row, FILE) for row in own} | rows
    for role, name in names.items():
        if name and name not in rows:
            value = about.get(role)
            flags = value | {"special": True} if isinstance(value, dict) else name
            rows[name] = _row(flags, f"{CONFIG}: {role}")
    for value in _extra(about, whole=True):
        row = _row(value, f"{CONFIG}: extra_special_tokens")
        rows.setdefault(row["content"], row)
    return list(rows.values())


def _extra(about: Mapping[str, Any], *, whole: bool = False) -> list[Any]:
    """Return further special pieces by name, or as they are written out."""
    pieces = about.get("extra_special_tokens") or about.get("additional_special_tokens") or []
    rows = pieces if isinstance(pieces, list) else []
    return rows if whole else [r.get("content") if isinstance(r, dict) else r for r in rows]


def _row(value: Any, where: str) -> Json:
    """Return the row of an added piece, written out or by name alone."""
    if isinstance(value, str):
        return pipelines.added_token(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where}: {value!r:.80} is no piece; fetch the file again")
    known = pipelines.added_token(value["content"], special=False, normalized=True)
    known |= {name: bool(value[name]) for name in known if name != "content" and name in value}
    return known


def _number(text: Any) -> int:
    if isinstance(text, bool) or not (isinstance(text, int) or str(text).isdecimal()):
        raise CheckpointError(f"the id {text!r:.40} of an added piece is no number")
    return int(text)


def _base(
    home: Path, kind: Kind, about: Mapping[str, Any], names: Mapping[str, Any]
) -> tuple[Json, list[Json]]:
    """Return (tokenizer.json of older files, rows of pieces that come after the config's)."""
    try:
        for name in PROTOS:
            if (home / name).exists() and kind.proto is not None:
                proto = _proto(home / name)
                base = kind.proto(proto, about, names)
                more = pipelines.added(proto) if kind.pieces and not _extra(about) else []
                if kind is ANY:
                    more = [row for row in more if row["special"]]
                return base, [*base.pop("sentinels", []), *more]
        if (home / VOCAB).exists() and (home / MERGES).exists() and kind.merges is not None:
            return kind.merges(_vocab(home / VOCAB), _merges(home / MERGES), about, names), []
        if (home / WORDS).exists() and kind.words is not None:
            return kind.words(_words(home / WORDS), about, names), []
    except KeyError as error:
        raise CheckpointError(
            f"its vocabulary has no {error.args[0]!r}, which {CONFIG} or its kind names"
        ) from error
    if (home / TIKTOKEN).exists():
        raise _tiktoken(TIKTOKEN)
    raise CheckpointError(
        f"there is no {FILE}, no {', '.join(PROTOS)}, no {VOCAB} with {MERGES} and no {WORDS} "
        f"that such a model reads; fetch them, or go without text"
    )


def _proto(path: Path) -> modelproto.Proto:
    raw = _bytes(path)
    if _is_tiktoken(raw):
        raise _tiktoken(path.name)
    try:
        return modelproto.read_proto(raw)
    except (ValueError, OverflowError) as error:
        raise CheckpointError(
            f"no sentencepiece model, or a truncated one ({error}); fetch it again"
        ) from error


def _ended(
    tokenizer: HuggingFace, kind: Kind, about: Mapping[str, Any], names: Mapping[str, Any]
) -> bytes:
    """Return a file without a template of its own with bos and eos where its config says so."""
    marks: list[list[str]] = []
    for role, default in (("bos", kind.begins), ("eos", False)):
        said, name = about.get(f"add_{role}_token", default), names.get(f"{role}_token")
        marks.append([name] if said and name else [])
    written = json.loads(tokenizer.model)
    if written["post_processor"] is None and any(marks):
        written["post_processor"] = pipelines.template(marks[0], marks[1], tokenizer.vocabulary())
    return json.dumps(written, ensure_ascii=False).encode()


def _untyped(model: bytes) -> bytes:
    """Return a tokenizer.json that gives the type 0 to all tokens of a pair."""

    def zero(part: Any) -> Any:
        if isinstance(part, list):
            return [zero(one) for one in part]
        if not isinstance(part, dict):
            return part
        return {name: 0 if name == "type_id" else zero(one) for name, one in part.items()}

    about = json.loads(model)
    if (about.get("post_processor") or {}).get("type") == "BertProcessing":
        (sep, end), (cls, begin) = (about["post_processor"][name] for name in ("sep", "cls"))
        ids = {sep: end, cls: begin}
        about["post_processor"] = pipelines.template([cls], [sep], ids, between=[sep])
    about["post_processor"] = zero(about.get("post_processor"))
    return json.dumps(about, ensure_ascii=False).encode()


def _is_tiktoken(raw: bytes) -> bool:
    """Return whether a file is OpenAI's list of base64 pieces and ranks, as Llama 3 ships it."""
    first, *rest = raw[:200].split(b"\n", 1)[0].split(b" ")
    return len(rest) == 1 and rest[0].strip().isdigit() and first.isascii() and len(first) % 4 == 0


def _tiktoken(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is a tiktoken file (as of Llama 3), no sentencepiece model; fetch {FILE} of the "
        f"same model, which holds the same pieces"
    )


def _bytes(path: Path) -> bytes:
    return files.read_artifact(path, "tokenizer file", folder.MAX_BYTES)


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name}: byte {error.start} is not UTF-8") from error


def _vocab(path: Path) -> dict[str, int]:
    vocab = files.read_json(path, "vocabulary", folder.MAX_BYTES)
    if not all(type(i) is int for i in vocab.values()):
        raise CheckpointError(f"{path.name} does not map pieces to ids; fetch it again")
    return vocab


def _merges(path: Path) -> list[list[str]]:
    lines = _text(path).split("\n")
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise CheckpointError(f"{path.name}: {' '.join(wrong[0])!r:.60} is no merge of two pieces")
    return [[left, right.removesuffix("\r")] for left, right in pairs]


def _words(path: Path) -> dict[str, int]:
    lines = _text(path).removesuffix("\n").split("\n")
    return {line.rstrip(): i for i, line in enumerate(lines)}
