"""Tokenizer files of a folder that can't be read say what they are and what to do."""

import base64
import json

import pytest

from jaxgen.errors import CheckpointError
from jaxgen.pretrained.assets import read_tokenizer

CONFIG = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
RANKS = b"\n".join(base64.b64encode(bytes([b])) + b" %d" % b for b in range(256))
WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n"
BROKEN = {
    "tiktoken": ({"tokenizer.model": RANKS}, {}, "tiktoken file .*fetch tokenizer.json"),
    "tiktoken by name": ({"tiktoken.model": RANKS}, {}, "tiktoken file .*fetch tokenizer.json"),
    "no sentencepiece": ({"tokenizer.model": b"\x0a\xff"}, {}, "no sentencepiece model"),
    "unknown class": (
        {"vocab.txt": b"a"}, {"tokenizer_class": "BertJapaneseTokenizer"},
        "tokenizer_class='BertJapaneseTokenizer' without tokenizer.json is not read",
    ),
    "no unknown": (
        {"vocab.txt": b"a\nb\n"}, {"tokenizer_class": "BertTokenizer"}, "has no '.CLS.'",
    ),
    "odd merge": (
        {"vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\na b c\n"},
        {"tokenizer_class": "GPT2Tokenizer"}, "'a b c' is no merge",
    ),
    "odd vocabulary": (
        {"vocab.json": b'{"a": "0"}', "merges.txt": b""},
        {"tokenizer_class": "GPT2Tokenizer"}, "does not map pieces to ids",
    ),
    "not UTF-8": (
        {"vocab.txt": b"a\n\xff\n"}, {"tokenizer_class": "BertTokenizer"}, "byte 2 is not UTF-8",
    ),
    "odd added piece": (
        {"vocab.txt": WORDS.encode()},
        {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"7": 3}}, "3 is no piece",
    ),
    "odd added id": (
        {"vocab.txt": WORDS.encode()},
        {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"x": {"content": "y"}}},
        "the id 'x' of an added piece is no number",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "about", "said"), BROKEN.values(), ids=BROKEN)
def test_files_that_are_not_read_are_refused_in_one_line(tmp_path, files, about, said):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
