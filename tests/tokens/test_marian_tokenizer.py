"""Marian's two models and one vocabulary: ids by name, and every unsound file refused."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from jaxgen.errors import CheckpointError
from jaxgen.tokens import load, marian

LINES = ["A dog runs through the snow.", "Two men talk; a child plays.", "Snow is old!"] * 5
NAMES = ["</s>", "<unk>", ">>deu<<", "▁dog", "▁snow", "s", ".", "▁A", "▁child", "<pad>"]
KNOWN = {name: i for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def side():
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=buffer, vocab_size=48, minloglevel=3,
        hard_vocab_limit=False,
    )  # fmt: skip
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, side):
    (tmp_path / marian.SOURCE).write_bytes(side)
    (tmp_path / marian.TARGET).write_bytes(side)
    (tmp_path / marian.VOCAB).write_text(json.dumps(KNOWN))
    return tmp_path


def test_ids_are_those_of_the_pieces_by_name(folder, side):
    tokenizer = marian.read_marian(folder)
    processor = sentencepiece.SentencePieceProcessor(model_proto=side)
    for text in ("A dog", "A child runs.", "漢字"):
        pieces = processor.encode(text, out_type=str)
        assert tokenizer.encode(text) == [KNOWN.get(piece, 1) for piece in pieces]
    assert tokenizer.encode(">>deu<<A")[0] == 2 and tokenizer.encode(">>xyz<<A")[0] == 1
    assert tokenizer.decode([7, 3, 5, 6, 0, 9]) == "A dogs."
    assert tokenizer.byte_lengths.tolist() == [0, 0, 7, 4, 5, 1, 1, 2, 6, 0]


def test_a_saved_one_is_the_same(folder, tmp_path):
    tokenizer = marian.read_marian(folder)
    tokenizer.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode("A dog") == tokenizer.encode("A dog")


DAMAGE = {
    "no json": (marian.VOCAB, b"{oops", "is no JSON"),
    "twice": (marian.VOCAB, b'{"<unk>": 0, "<unk>": 1}', "'<unk>' is there twice"),
    "a gap": (marian.VOCAB, b'{"<unk>": 0, "a": 2}', "are not 0 .. 1"),
    "shared": (marian.VOCAB, b'{"<unk>": 0, "a": 0}', "are not 0 .. 1"),
    "no unknown": (marian.VOCAB, b'{"a": 0}', "has no <unk>"),
    "not ids": (marian.VOCAB, b'{"a": "b"}', "does not map pieces to ids"),
    "model damaged": (marian.TARGET, b"\x0a\xff\xff", "no sentencepiece model"),
    "model missing": (marian.TARGET, None, "no such tokenizer file"),
}


@pytest.mark.parametrize(("name", "content", "part"), DAMAGE.values(), ids=DAMAGE)
def test_an_unsound_file_is_refused(folder, name, content, part):
    path = Path(folder / name)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        marian.read_marian(folder)
    assert part in str(error.value) and "\n" not in str(error.value)
