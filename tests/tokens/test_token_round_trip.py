"""Text in, the same text out: at once, in pieces, and after saving."""

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from token_makers import TEXT, make

from jaxgen import tokens
from jaxgen.errors import ConfigError, DataError
from jaxgen.tokens import Detokenizer, Tokenizer, TokenizerSettings
from jaxgen.tokens.dropout import split_with_dropout
from jaxgen.tokens.pieces import BLOCK

BYTE_LEVEL = ("bpe", "unigram", "bytes", "hf")
KINDS = (*BYTE_LEVEL, "chars")
AWKWARD = "a \n\t\r\0\u2581\u2585é日👍🏽\u200d\u2028\ufeff<s>0x41"
awkward = st.text(st.sampled_from(AWKWARD), max_size=30)
quick = settings(max_examples=100, deadline=None)


@cache
def small_letters(kind):
    return tokens.train(TokenizerSettings(kind=kind, vocab_size=310, lowercase=True), TEXT)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@quick
@given(text=st.one_of(st.text(max_size=40), awkward))
@example(text="<s></s><unk><pad><0x41><|endoftext|>")
@example(text="  two  spaces \n\n \u2581 \u2581\u2581 x")
@example(text="")
def test_any_unicode_comes_back_exactly(byte_level, kind, text):
    tokenizer = byte_level[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    special = tokenizer.special
    assert not {special.bos, special.eos, special.pad} & set(ids)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(data=st.data())
def test_streamed_pieces_join_to_the_decoded_text(all_kinds, kind, data):
    tokenizer = all_kinds[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    words = Detokenizer(tokenizer)
    assert "".join([*map(words.push, ids), words.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@quick
@given(text=awkward, cut=st.integers(0, 200))
def test_streaming_never_shows_a_split_character(byte_level, kind, text, cut):
    tokenizer = byte_level[kind]
    ids = tokenizer.encode(text)
    cut = min(cut, len(ids))
    words = Detokenizer(tokenizer, after=ids[:cut])
    pieces = [*map(words.push, ids[cut:]), words.flush()]
    assert all("\ufffd" not in piece for piece in pieces)
    assert text.endswith("".join(pieces))
    begun = Detokenizer(tokenizer)
    assert "".join([*map(begun.push, ids[:cut]), *pieces]) == text


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_long_lines_and_texts_come_back_exactly(byte_level, kind):
    tokenizer = byte_level[kind]
    for text in ("word " * BLOCK, "a" * (2 * BLOCK + 7), "line of text\n" * 20_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_blocks_of_a_long_line_get_the_ids_of_the_whole_line(byte_level):
    for kind in ("bpe", "unigram"):
        tokenizer = byte_level[kind]
        text = "some words, 123 and  more " * (BLOCK // 10)
        assert tokenizer.encode(text) == tokenizer._processor.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_get_the_ids_of_each(all_kinds, kind):
    tokenizer = all_kinds[kind]
    assert isinstance(tokenizer, Tokenizer)
    texts = [*TEXT, "", "a b"]
    assert tokenizer.encode_many(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_loads_as_the_same(all_kinds, kind, tmp_path):
    tokenizer = all_kinds[kind]
    tokenizer.save(tmp_path / "tokenizer")
    again = tokens.load(tmp_path / "tokenizer")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.special == tokenizer.special
    assert again.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    np.testing.assert_array_equal(again.byte_lengths, tokenizer.byte_lengths)


@pytest.mark.parametrize("kind", ("bpe", "unigram", "chars"))
def test_training_twice_gives_one_fingerprint(all_kinds, kind):
    assert make(kind).fingerprint == all_kinds[kind].fingerprint


def test_fingerprints_tell_tokenizers_apart(all_kinds, tmp_path):
    prints = {kind: tokenizer.fingerprint for kind, tokenizer in all_kinds.items()}
    assert len(set(prints.values())) == len(KINDS)
    (tmp_path / "tokenizer.json").write_bytes(all_kinds["hf"].model)
    undeclared = tokens.load(tmp_path / "tokenizer.json")
    assert undeclared.special.eos is None and all_kinds["hf"].special.eos == 0
    assert undeclared.fingerprint != prints["hf"]


def test_characters_are_ordered_and_unknown_ones_refused(all_kinds):
    chars = all_kinds["chars"]
    assert list(chars.characters) == sorted(set("".join(TEXT)))
    with pytest.raises(DataError, match=r"character 1 .*'€' \(U\+20AC\)"):
        chars.encode("a€")


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_half_of_a_surrogate_pair_is_refused_by_name(byte_level, kind):
    with pytest.raises(DataError, match=r"character 3 .*U\+D83D"):
        byte_level[kind].encode("a\nb\ud83d")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", (-1, 100_000, 2**32 - 1))
def test_ids_outside_the_vocabulary_are_refused(all_kinds, kind, wrong):
    with pytest.raises(DataError, match=f"{wrong} is outside"):
        all_kinds[kind].decode([1, wrong])
    with pytest.raises(DataError, match=f"{wrong} is outside"):
        Detokenizer(all_kinds[kind]).push(wrong)


def test_a_word_piece_file_decodes_as_its_library_does(tmp_path):
    import tokenizers
    from token_makers import hf_file

    path = hf_file(tmp_path / "tokenizer.json", decoder="words")
    tokenizer, engine = tokens.load(path), tokenizers.Tokenizer.from_file(str(path))
    ids = tokenizer.encode("The lazy dog")
    assert ids == engine.encode("The lazy dog").ids
    assert tokenizer.decode(ids) == engine.decode(ids)
    words = Detokenizer(tokenizer, after=ids[:2])
    assert "".join(map(words.push, ids[2:])) + words.flush() == tokenizer.decode(ids).removeprefix(
        tokenizer.decode(ids[:2])
    )


@pytest.mark.parametrize("suffix", (False, True))
def test_a_foreign_sentencepiece_model_decodes_as_its_library_does(tmp_path, suffix):
    import io

    import sentencepiece

    model = io.BytesIO()
    lines = [line for text in TEXT for line in text.split("\n") if "\t" not in line and line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=80,
        minloglevel=3,
        treat_whitespace_as_suffix=suffix,
        hard_vocab_limit=False,
    )
    (tmp_path / "x.model").write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = tokens.load(tmp_path / "x.model")
    assert (ours.special.bos, ours.special.eos, ours.special.pad) == (1, 2, None)
    for text in ("The quick brown fox", "a  b\nc", "ＴＨＥ dog"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        words = Detokenizer(ours)
        assert "".join([*map(words.push, ids), words.flush()]) == theirs.decode(ids)


def test_text_full_of_special_pieces_trains_and_comes_back():
    text = "<s> <0x41> </s> <unk> <pad> <0x41><s>" * 20
    tokenizer = tokens.train(TokenizerSettings(kind="bpe", vocab_size=300), [text + TEXT[1]])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and min(ids) > 3


def test_pieces_drawn_by_dropout_spell_the_text_and_a_seed_decides_them():
    tokenizer, text = make("bpe"), TEXT[1] + "\u2581 and é\n"
    draws = [tokenizer.encode_with_dropout([text, "fox"], 0.3, seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    for rows in draws:
        assert [tokenizer.decode(ids) for ids in rows] == [text, "fox"]
        assert len(rows[0]) > len(tokenizer.encode(text))


@pytest.mark.parametrize("lowercase", (False, True))
@quick
@given(text=st.one_of(st.text(st.sampled_from("".join(TEXT)), max_size=60), awkward))
def test_without_dropout_the_pieces_are_those_of_sentencepiece(lowercase, text):
    tokenizer = small_letters("bpe") if lowercase else make("bpe")
    assert tokenizer.encode_with_dropout([text], 0.0, 1) == [tokenizer.encode(text)]


def test_dropout_draws_as_its_paper_says():
    ranks = {piece: rank for rank, piece in enumerate(("bc", "ab", "abc", "a", "b", "c"))}
    chance, p = random.Random(0), 0.3
    # From a b c: bc where it is not left out, else ab; then the one that is left, or all again.
    bc, ab = 1 - p, p * (1 - p)
    wanted = {"abc": (bc + ab) * (1 - p), "a bc": bc * p, "ab c": ab * p, "a b c": p * p}
    drawn = Counter(" ".join(split_with_dropout("abc", ranks, p, chance)) for _ in range(20_000))
    assert set(drawn) == set(wanted)
    found = [drawn[text] for text in wanted]
    assert chisquare(found, [20_000 * share for share in wanted.values()]).pvalue > 0.001


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_small_letters(kind, tmp_path):
    made = small_letters(kind)
    made.save(tmp_path / "tokenizer")
    for text in (*TEXT, "ÀÉÎ Straße\n\tΣΑΣ İ"):
        wanted = "".join(letter.lower() for letter in text)  # a final sigma is as any other
        for tokenizer in (made, tokens.load(tmp_path / "tokenizer")):
            assert tokenizer.decode(tokenizer.encode(text)) == wanted
    assert not any(piece != piece.lower() for piece in made.vocabulary() if piece[:3] != "<0x")
    again = tokens.train(TokenizerSettings(kind=kind, vocab_size=310, lowercase=True), TEXT)
    assert again.fingerprint == made.fingerprint  # it names no file that it was made from


@pytest.mark.parametrize(
    ("fields", "said"),
    (
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"dropout": 0.1, "kind": "unigram"}, "needs kind=bpe, but kind=unigram"),
        ({"draws": 2}, "draws=2 must be 1 or more, and 1 where"),
        ({"draws": 0, "dropout": 0.1}, "draws=0 must be 1 or more"),
        ({"lowercase": True, "kind": "bytes"}, "lowercase=True has no effect with kind=bytes"),
    ),
)
def test_settings_that_contradict_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        TokenizerSettings(**fields)
