"""Every decoder that a tokenizer.json may declare, against the library that defines them."""

import json

import numpy as np
import pytest
from token_makers import edited, hf_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxgen import tokens
from jaxgen.errors import CheckpointError, DataError

MARK = "\u2581"
PIECES = [
    *(f"{mark}{word}" for mark in (MARK, "_", "#", "") for word in ("a", "cat", "\u00e9", ".")),
    *(MARK, "_", "##b", "b</w>", "\u0120x", "\u0120", "\u010a", "\u00c3\u00a9", "\u2028", "\u00a0"),
    *(f"<0x{byte:02X}>" for byte in (0x20, 0x41, *"\u65e5".encode())),
]
DOUBLED = [MARK * 2, f"{MARK}{MARK}a", f"a{MARK}b", " c"]
SPECIAL = ["<s>", "</s>"]
ADDED = ["<tool>", f"{MARK}added"]


def sequence(*steps):
    return decoders.Sequence(list(steps))


DECODERS = {
    "none": None,
    **{
        f"metaspace {mark} {scheme} {split}": decoders.Metaspace(mark, scheme, split)
        for mark in (MARK, "_", "#")
        for scheme in ("always", "first", "never")
        for split in (True, False)
    },
    **{
        f"llama {mark} {start}": sequence(
            decoders.Replace(mark, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", start, 0),
        )
        for mark in (MARK, "_")
        for start in (0, 1, 2)
    },
    "gemma": sequence(decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()),
    "no bytes": sequence(decoders.Replace(MARK, " "), decoders.Fuse()),
    "strip of another character": sequence(
        decoders.Replace(MARK, " "), decoders.Fuse(), decoders.Strip("a", 1, 0)
    ),
    "strip before fuse": sequence(
        decoders.Replace(MARK, " "), decoders.Strip(" ", 1, 0), decoders.Fuse()
    ),
    "replaced by another": sequence(decoders.Replace(MARK, "-"), decoders.Fuse()),
    "replaced twice": sequence(
        decoders.Replace(MARK, " "), decoders.Replace("a", "o"), decoders.Fuse()
    ),
    "bytes and metaspace": sequence(decoders.ByteFallback(), decoders.Metaspace()),
    "byte level": decoders.ByteLevel(),
    "byte level in a sequence": sequence(decoders.ByteLevel()),
    "byte level, then strip": sequence(decoders.ByteLevel(), decoders.Strip(" ", 1, 0)),
    "wordpiece": decoders.WordPiece(),
    "wordpiece without cleanup": decoders.WordPiece("#", cleanup=False),
    "bpe": decoders.BPEDecoder(),
    "ctc": decoders.CTC(),
    "fuse": decoders.Fuse(),
}


def written(path, decoder, pieces, **parts):
    engine = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    if decoder is not None:
        engine.decoder = decoder
    for name, part in parts.items():
        setattr(engine, name, part)
    engine.add_special_tokens(SPECIAL)
    engine.add_tokens([AddedToken(name, normalized=False) for name in ADDED])
    engine.save(str(path))
    return engine, tokens.load(path)


@pytest.mark.parametrize("pieces", [PIECES, [*PIECES, *DOUBLED]], ids=["single", "doubled"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_and_streaming_equal_the_library(tmp_path, name, pieces):
    engine, ours = written(tmp_path / "tokenizer.json", DECODERS[name], pieces)
    rng = np.random.default_rng(0)
    plain = [i for i in range(ours.vocab_size) if not engine.id_to_token(i).startswith("<0x")]
    rows = [[i] for i in plain] + [rng.choice(plain, n).tolist() for n in range(1, 60)]
    day = [engine.token_to_id(f"<0x{byte:02X}>") for byte in "\u65e5".encode()]
    rows += [[*row, *day] for row in rows[:9]]
    for row in rows:
        text = engine.decode(row, skip_special_tokens=True)
        assert ours.decode(row) == text
        stream = tokens.Detokenizer(ours)
        assert "".join(map(stream.push, row)) + stream.flush() == text


def test_a_decoder_at_which_the_library_panics_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="the tokenizers library refuses"):
        written(tmp_path / "x.json", sequence(decoders.Fuse(), decoders.Strip(" ", 0, 1)), PIECES)


def test_what_streams_piece_by_piece_is_known(tmp_path):
    streamed = {
        name
        for name, decoder in DECODERS.items()
        if written(tmp_path / "x.json", decoder, PIECES)[1].surface is not None
    }
    assert {"llama _ 1", "gemma", "no bytes", "byte level"} <= streamed
    assert not {"llama _ 2", "strip before fuse", "replaced twice"} & streamed


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("mark", [MARK, "_", "#"])
def test_texts_return_under_every_mark(tmp_path, mark, scheme):
    letters = [mark, *"abc_#\u2581", "\u00a0"]
    engine, ours = written(
        tmp_path / "tokenizer.json",
        decoders.Metaspace(mark, scheme),
        list(dict.fromkeys(letters)),
        pre_tokenizer=pre_tokenizers.Metaspace(mark, scheme),
    )
    for text in ("a b", "ab  c", "a\u00a0b", " a", "c b a "):
        assert ours.encode(text) == engine.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == engine.decode(ours.encode(text))
    assert ours.decode(ours.encode("a b c")) == "a b c"
    assert ours.byte_lengths[ours.vocabulary()[mark]] == 1


def test_the_old_spelling_of_never_is_read_as_the_library_reads_it(tmp_path):
    path = tmp_path / "tokenizer.json"
    written(path, decoders.Metaspace(MARK, "never"), PIECES)
    old = {"type": "Metaspace", "replacement": MARK, "add_prefix_space": False}
    about = json.loads(path.read_text())
    about["decoder"] = old | {"prepend_scheme": "never"}
    path.write_text(json.dumps(about))
    ids = [PIECES.index(f"{MARK}a"), PIECES.index(f"{MARK}cat")]
    assert tokens.load(path).decode(ids) == Tokenizer.from_file(str(path)).decode(ids) == " a cat"


def test_normalizers_are_the_library_s(tmp_path):
    engine, ours = written(
        tmp_path / "tokenizer.json",
        DECODERS["gemma"],
        [MARK, *"abc"],
        normalizer=normalizers.Replace(" ", MARK),
    )
    assert ours.encode("a b") == engine.encode("a b", add_special_tokens=False).ids
    assert ours.decode(ours.encode("a b")) == "a b"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes", "chars", "hf"])
@pytest.mark.parametrize("wrong", [-1, 10**6, 2**40])
def test_ids_outside_the_vocabulary_are_refused_by_every_tokenizer(all_kinds, kind, wrong):
    tokenizer = all_kinds[kind]
    for ids in ([wrong], [0, wrong]):
        with pytest.raises(DataError, match=f"token id {wrong} is outside the vocabulary"):
            tokenizer.decode(ids)
        stream = tokens.Detokenizer(tokenizer)
        with pytest.raises(DataError, match=f"token id {wrong} is outside the vocabulary"):
            for token in ids:
                stream.push(token)
            stream.flush()


def test_ids_outside_are_refused_where_decoding_is_the_library_s(tmp_path):
    path = edited(hf_file(tmp_path / "tokenizer.json", decoder="words"), lambda about: None)
    tokenizer = tokens.load(path)
    assert tokenizer.surface is None
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match=f"token id {wrong} is outside"):
            tokenizer.decode([0, wrong])
        with pytest.raises(DataError, match=f"token id {wrong} is outside"):
            tokens.Detokenizer(tokenizer, after=[wrong]).flush()
