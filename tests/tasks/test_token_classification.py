"""Entities are the neighbours whose tokens have one label, at their characters in the text."""

import json
from dataclasses import replace

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.pair import locate
from jaxgen.tokens.plain import Bytes

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ada", "love", "##lace", "in", "york", "new"]
LABELS = ("O", "B-PER", "I-PER", "LOC")
TEXT = "Ada Lovelace, in New  York"


def wordpiece():
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(WORDS)}
    engine = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return HuggingFace(engine.to_str().encode())


def labelled(meaning, tokenizer=None):
    """Return a model whose tokens have the label of their id, wherever they stand."""
    config = jaxgen.ModelConfig(
        vocab_size=len(meaning), context=16, layers=1, d_model=len(meaning), heads=1,
        topology="encoder", head="token_classes", classes=len(LABELS), norm="rms", biases="none",
        positions="learned",
    )  # fmt: skip
    params = random_params(config)
    for layer in ("attn/o", "feed/down"):
        group, leaf = layer.split("/")
        params["layers"][group][leaf] = 0 * params["layers"][group][leaf]
    params["embed"]["positions"] = 0 * params["embed"]["positions"]
    params["embed"]["tokens"] = np.eye(len(meaning), dtype=np.float32)
    out = np.zeros((len(LABELS), len(meaning)), np.float32)
    for token, (label, weight) in enumerate(meaning):
        out[LABELS.index(label), token] = weight
    params["head"] = {"out": out, "out_bias": np.zeros(len(LABELS), np.float32)}
    told = GenerationConfig(labels=LABELS)
    return LoadedModel(config, params, tokenizer or wordpiece(), None, LABELS, told)


OUT = ("O", 1.0)
MEANING = [OUT, OUT, OUT, OUT, ("B-PER", 1.0), ("I-PER", 1.0), ("LOC", 2.0), OUT, ("LOC", 1.5),
           ("LOC", 0.5)]  # fmt: skip
PLACES = {
    "none": ["Ada", "Love", "lace", "New", "York"],
    "simple": ["Ada Love", "lace", "New  York"],
    "first": ["Ada Lovelace", "New  York"],
    "max": ["Ada", "Lovelace", "New  York"],
}


@pytest.fixture(scope="module")
def model():
    return labelled(MEANING)


@pytest.mark.parametrize("aggregation", PLACES)
def test_entities_are_what_the_aggregation_joins(model, aggregation):
    (found,) = tasks.classify_tokens(model, [TEXT], aggregation=aggregation)
    assert [one.text for one in found] == PLACES[aggregation]
    assert all(TEXT[one.begin : one.end] == one.text for one in found)
    plain = {"none": "B-PER"}.get(aggregation, "PER")
    assert found[0].label == plain and found[-1].label == "LOC"


def test_the_score_of_an_entity_is_the_mean_of_its_parts(model):
    (tokens,), (joined,) = (
        tasks.classify_tokens(model, [TEXT], aggregation=how) for how in ("none", "simple")
    )
    wanted = np.mean([tokens[-2].score, tokens[-1].score])
    assert joined[-1].score == pytest.approx(wanted) and tokens[-2].score < wanted


def test_the_mean_of_a_words_tokens_can_be_another_class_than_the_first(model):
    (found,) = tasks.classify_tokens(model, ["Lovelace"], aggregation="average")
    assert [(one.label, one.text) for one in found] == [("LOC", "Lovelace")]


def test_b_begins_another_entity_and_nothing_is_found_in_nothing(model):
    assert [one.text for one in tasks.classify_tokens(model, ["Ada Ada in"])[0]] == ["Ada", "Ada"]
    assert tasks.classify_tokens(model, ["in in"]) == [[]]


def test_a_text_that_is_cut_has_the_entities_of_what_is_left(model):
    long = "in " * 14 + "Ada Ada Ada Ada"
    with pytest.raises(ConfigError, match="overflow='cut'"):
        tasks.classify_tokens(model, [long])
    with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
        (found,) = tasks.classify_tokens(model, [long], overflow="cut")
    assert [one.begin for one in found] == [42, 46]


def test_bytes_are_found_at_their_characters_and_words_end_at_spaces():
    text = "é b"
    spans = locate(Bytes(), text)
    assert [(one.begin, one.end) for one in spans] == [(0, 1), (0, 1), (1, 2), (2, 3)]
    assert [one.continues for one in spans] == [False, True, False, False]


def test_each_task_says_which_one_fits_the_model(model):
    with pytest.raises(ConfigError, match="classify_tokens"):
        tasks.classify(model, ["Ada"])
    other = replace(model, config=model.config.replace(head="spans", classes=None))
    with pytest.raises(ConfigError, match="head=token_classes, but head=spans"):
        tasks.classify_tokens(other, ["Ada"])


def test_two_towers_read_a_text_again_after_the_start(tmp_path):
    config = jaxgen.ModelConfig(
        vocab_size=259, context=16, layers=1, d_model=8, heads=2,
        topology="encoder_decoder", head="token_classes", classes=3,
    )  # fmt: skip
    model = LoadedModel(config, random_params(config), Bytes(), 258)
    ids = model.ids("abc")
    memory = jaxgen.encode(model.params, config, [ids])
    logits = jaxgen.apply(model.params, config, [[258, *ids[:-1]]], memory=memory).logits[0]
    logits = logits[ids.index(97) :][:3]
    wanted = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = (wanted / wanted.sum(-1, keepdims=True)).max(-1)
    (found,) = tasks.classify_tokens(model, ["abc"], aggregation="none")
    np.testing.assert_allclose([one.score for one in found], wanted, atol=1e-5)
    with pytest.raises(ConfigError, match="classify_tokens needs decoder_start_token_id"):
        tasks.classify_tokens(replace(model, start=None), ["abc"])


def test_a_folder_of_transformers_and_the_verb_find_entities(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(start, "prepare_jax", lambda *args: None)
    config = jaxgen.ModelConfig(
        vocab_size=len(WORDS), context=16, layers=1, d_model=8, heads=2, topology="encoder",
        norm_at="post", embed_norm="norm", feed="gelu", token_types=2, norm_epsilon=1e-12,
        head="token_classes", classes=4, output_bias="none",
    )  # fmt: skip
    params = random_params(config)
    told = GenerationConfig(labels=LABELS)
    jaxgen.save(tmp_path / "hub", config, params, tokenizer=wordpiece(), layout="hf",
                generation_config=told)  # fmt: skip
    written = json.loads((tmp_path / "hub/config.json").read_bytes())
    assert written["architectures"] == ["BertForTokenClassification"]
    assert written["id2label"]["3"] == "LOC"
    (wanted,) = jaxgen.open(tmp_path / "hub").classify_tokens([TEXT], aggregation="first")
    target = tmp_path / "out.jsonl"
    words = ["classify", str(tmp_path / "hub"), TEXT, "--aggregation", "first"]
    assert app.main([*words, "--output", str(target)]) == 0
    row = json.loads(target.read_text())["result"]
    assert [(one["text"], one["begin"]) for one in row] == [(w.text, w.begin) for w in wanted]
    assert app.main(words) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and all(one.label in line for one in wanted)
    assert app.main([*words, "--pairs"]) == 2


def test_a_decoder_with_a_head_of_classes_opens_and_says_that_it_does_not_generate(tmp_path):
    config = jaxgen.ModelConfig(vocab_size=259, context=16, layers=1, d_model=8, heads=2,
                                head="token_classes", classes=2)  # fmt: skip
    params = random_params(config)
    jaxgen.save(tmp_path / "model", config, params, tokenizer=Bytes())
    session = jaxgen.open(tmp_path / "model")
    (tokens,) = session.classify_tokens(["ab c"], aggregation="none")
    assert [(one.begin, one.text) for one in tokens] == list(enumerate("ab c"))
    with pytest.raises(ConfigError, match="head=token_classes, which gives no next token"):
        session.generate("ab")
