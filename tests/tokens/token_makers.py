"""Small tokenizers, and files of other libraries."""

import json
from functools import cache

from jaxgen import tokens
from jaxgen.tokens import TokenizerSettings

TEXT = [
    "def add(a, b):\n    return a + b  # naïve café 12345\n\n\nclass Ünïcödé:\n\tpass\n",
    "The quick brown fox jumps over the lazy dog.  The dog doesn't care, 日本語 is here.\n" * 3,
]


@cache
def make(kind: str):
    if kind in ("bpe", "unigram"):
        return tokens.train(TokenizerSettings(kind=kind, vocab_size=310), TEXT)
    return tokens.train(TokenizerSettings(kind=kind), TEXT)


def hf_file(path, decoder="bytes"):
    """Write a tokenizer.json as the `tokenizers` library makes it and return its path."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if decoder == "bytes":
        engine = tokenizers.Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        engine = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
        engine.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=90, special_tokens=["[UNK]", "[PAD]"], show_progress=False
        )
    engine.train_from_iterator(TEXT, trainer)
    engine.save(str(path))
    return path


def edited(path, change):
    """Apply `change` to the parsed tokenizer.json."""
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    return path
