"""Marian's tokenizer gives the ids and texts of transformers' MarianTokenizer, and goes round."""

import io
import json
import os
import shutil

import pytest
import sentencepiece
from random_params import random_params

import jaxgen
from jaxgen.text.loaded_model import open_model
from jaxgen.tokens import marian

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")

TEXTS = {
    "source": ["A dog runs through the snow.", "Two men talk; a child plays.", "The café is old!"],
    "target": ["Ein Hund läuft durch den Schnee.", "Zwei Männer reden.", "Das Café ist alt!"],
}
ODD = ["A dog", ">>deu<< The snow", "  two   spaces ", "unseen: 漢字", "dog.", ">>fra<< men", "<<"]


def model_of(texts):
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 5), model_writer=buffer, vocab_size=60,
        model_type="unigram", hard_vocab_limit=False, minloglevel=3, bos_id=-1,
    )  # fmt: skip
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("marian")
    sides = {side: model_of(texts) for side, texts in TEXTS.items()}
    pieces = ["</s>", "<unk>", ">>deu<<"]
    for raw in sides.values():
        processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
        names = [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]
        pieces += [name for name in names[::2] if name not in pieces]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<pad>"])}
    config = jaxgen.ModelConfig(
        vocab_size=len(vocab), context=32, layers=1, d_model=8, heads=2, norm_at="post",
        topology="encoder_decoder", positions="sinusoid", embed_scale="root", feed="silu",
        output_bias="bias",
    )  # fmt: skip
    tokenizer = marian.Marian(marian.packed(sides["source"], sides["target"], vocab))
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": len(vocab) - 1}
    jaxgen.save(
        home / "hub", config, random_params(config), tokenizer=tokenizer, layout="hf",
        family="marian",
    )  # fmt: skip
    path = home / "hub/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ids | {"decoder_start_token_id": 1}))
    return home / "hub"


def test_ids_and_texts_are_those_of_transformers(folder):
    theirs = transformers.MarianTokenizer.from_pretrained(folder)
    model = open_model(folder)
    for text in (*TEXTS["source"], *ODD):
        assert model.ids(text) == theirs(text)["input_ids"], text
    for text in TEXTS["target"]:
        wanted = theirs(text_target=text)["input_ids"]
        assert [*model.tokenizer.encode_target(text), 0] == wanted
        assert model.tokenizer.decode(wanted) == theirs.decode(wanted, skip_special_tokens=True)
    assert model.start == 1 and model.stop == (0,)


def test_a_round_trip_keeps_models_and_vocabulary(folder, tmp_path):
    own = open_model(folder)
    jaxgen.save(tmp_path / "ours", own.config, own.params, tokenizer=own.tokenizer)
    again = open_model(tmp_path / "ours").tokenizer
    assert again.fingerprint == own.tokenizer.fingerprint
    jaxgen.save(
        tmp_path / "hub", own.config, own.params, tokenizer=again, layout="hf", family="marian"
    )
    for name in (marian.SOURCE, marian.TARGET, marian.VOCAB):
        assert (tmp_path / "hub" / name).read_bytes() == (folder / name).read_bytes()


def with_json(folder, home):
    """Copy a folder and write a tokenizer.json of its pieces, which splits them in another way."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    shutil.copytree(folder, home)
    vocab = json.loads((home / "vocab.json").read_bytes())
    rows = [(piece, -float(i)) for piece, i in sorted(vocab.items(), key=lambda row: row[1])]
    engine = Tokenizer(models.Unigram(rows, unk_id=vocab["<unk>"], byte_fallback=False))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.add_special_tokens(["</s>", "<pad>"])
    engine.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    engine.save(str(home / "tokenizer.json"))
    return engine


def test_a_tokenizer_json_beside_the_own_files_changes_nothing_and_alone_is_read(folder, tmp_path):
    engine = with_json(folder, tmp_path / "hub")
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path / "hub")
    model, texts = open_model(tmp_path / "hub"), TEXTS["source"]
    assert [model.ids(text) for text in texts] == [theirs(text)["input_ids"] for text in texts]
    alone = [engine.encode(text).ids for text in texts]
    assert alone != [model.ids(text) for text in texts]
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / "hub" / name).unlink()
    model = open_model(tmp_path / "hub")
    assert [model.ids(text) for text in texts] == alone
