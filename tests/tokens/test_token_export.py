"""Our tokenizers as files of the `tokenizers` library, which alone reads them here."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_makers import TEXT, make
from tokenizers import Tokenizer

from jaxgen import tokens
from jaxgen.tokens.export import tokenizer_json
from jaxgen.tokens.huggingface import HuggingFace

KINDS = ("bpe", "unigram", "bytes", "chars")
AWKWARD = "a   \n\t\r\u2581\u2585\u00e9\u65e5\U0001f44d\U0001f3fd\u200d\u2028\ufeff<s>0x41</unk>dog"


@pytest.fixture(scope="module")
def exported():
    return {kind: _exported(make(kind)) for kind in KINDS}


def _exported(tokenizer):
    found = tokenizer_json(tokenizer, rows=tokenizer.vocab_size, topology="decoder")
    engine = Tokenizer.from_str(found.file.decode())
    engine.encode_special_tokens = True
    return tokenizer, engine, HuggingFace(found.file)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.text(st.sampled_from(AWKWARD), max_size=60)))
def test_any_text_gets_the_same_ids_and_comes_back(exported, kind, text):
    ours, engine, again = exported[kind]
    if kind == "chars":
        text = "".join(c for c in text if c in ours.characters)
    ids = ours.encode(text)
    assert engine.encode(text, add_special_tokens=False).ids == ids == again.encode(text)
    assert engine.decode(ids) == text == again.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_ends_and_bytes_are_those_of_the_original(exported, kind):
    ours, engine, again = exported[kind]
    assert engine.get_vocab_size() == ours.vocab_size == again.vocab_size
    bos = [] if ours.special.bos is None else [ours.special.bos]
    assert engine.encode(TEXT[0][:5]).ids == [*bos, *ours.encode(TEXT[0][:5])]
    same = np.asarray(ours.byte_lengths) == again.byte_lengths
    assert same.all() or (kind in ("bpe", "unigram") and np.flatnonzero(~same).tolist() == [0])


@pytest.mark.parametrize("kind", ("bpe", "unigram", "bytes"))
def test_ids_beyond_the_tokenizer_are_a_mask_or_sentinels(kind):
    ours, size = make(kind), make(kind).vocab_size
    names = {"encoder": "<mask>", "encoder_decoder": "<extra_id_0>"}
    for topology, name in names.items():
        found = tokenizer_json(ours, rows=size + 100, topology=topology)
        known = HuggingFace(found.file)
        assert known.vocabulary()[name] == size
        text = f"dog{name}cat"
        assert known.encode_marked(text) == [*ours.encode("dog"), size, *ours.encode("cat")]
        assert known.encode(text) == ours.encode(text)


def test_runs_of_spaces_are_cut_alike_by_unigram():
    ours, engine, _ = _exported(
        tokens.train(tokens.TokenizerSettings(kind="unigram", vocab_size=330),
                     ["def f(x):\n" + " " * n + "return x  +  1" for n in range(1, 60)] + TEXT)
    )  # fmt: skip
    for n in range(1, 300, 7):
        text = f"x{' ' * n}y{' ' * (n // 2)}{'a' * n}"
        assert engine.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_roles_and_rows_are_kept_in_a_saved_folder(tmp_path):
    _, _, again = _exported(make("bytes"))
    small = HuggingFace(again.model, roles={"mask_token": "<pad>"}, vocab_size=200)
    small.save(tmp_path / "kept")
    kept = tokens.load(tmp_path / "kept")
    assert (kept.roles, kept.vocab_size) == ({"mask_token": "<pad>"}, 200)
    assert kept.encode("abc") == small.encode("abc")
    with pytest.raises(tokens.protocol.DataError, match="of id 233, but the model has 200 rows"):
        kept.encode("\u00e9\u9fff")
    assert json.loads((tmp_path / "kept/about.json").read_text())["vocab_size"] == 200
