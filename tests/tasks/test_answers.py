"""Answers are the likeliest spans of the text, wherever it is cut, or what a model writes."""

import json
from dataclasses import replace
from itertools import product

import jax
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import tasks
from jaxgen.text.batch_decoding import CHUNK
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.text.session import session_of
from jaxgen.text.tasks.question_answering import spans_of
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.pair import pairs
from jaxgen.tokens.plain import Bytes

BASE = {"vocab_size": 262, "context": 48, "layers": 1, "d_model": 16, "heads": 2, "init_std": 0.5}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "is", "she", "Ada", "love", "##lace", "wrote"]
CONTEXT = "Ada lovelace wrote  notes; she is Ada."
QUESTION = "who wrote"


def wordpiece():
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(WORDS)}
    engine = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return HuggingFace(engine.to_str().encode())


def model_of(tokenizer, **fields):
    config = jaxgen.ModelConfig(**(BASE | fields))
    return LoadedModel(config, random_params(config), tokenizer, start=0)


@pytest.fixture(scope="module")
def bert():
    return model_of(wordpiece(), topology="encoder", head="spans", token_types=2)


def exhaustive(logits, allowed, longest):
    """All spans by their probability, one by one, as the text of SQuAD's baseline has it."""
    kept = [i for i in range(len(allowed)) if allowed[i] or i == 0]
    total = [sum(np.exp(logits[i, side]) for i in kept) for side in (0, 1)]
    chance = [
        [np.exp(logits[i, side]) / total[side] for i in range(len(allowed))] for side in (0, 1)
    ]
    spans = [
        (i, j, chance[0][i] * chance[1][j])
        for i, j in product(range(len(allowed)), repeat=2)
        if allowed[i] and allowed[j] and i <= j < i + longest
    ]
    return chance[0][0] * chance[1][0], sorted(spans, key=lambda span: -span[2])


@pytest.mark.parametrize("longest", [1, 3, 20])
def test_spans_are_the_likeliest_of_all_that_may_be(longest):
    draw = np.random.default_rng(longest)
    allowed = np.arange(12) > 4
    allowed[9] = False
    logits = draw.normal(size=(12, 2)).astype(np.float32) * 3
    none, found = spans_of(logits, allowed, 4, longest)
    wanted_none, wanted = exhaustive(logits.astype(np.float64), allowed, longest)
    assert none == pytest.approx(wanted_none)
    assert [span[:2] for span in found] == [span[:2] for span in wanted[:4]]
    np.testing.assert_allclose([s[2] for s in found], [s[2] for s in wanted[:4]])


def test_answers_are_those_of_the_models_logits(bert):
    (found,) = tasks.answer(bert, [QUESTION], [CONTEXT], best=3)
    (pair,) = pairs(bert.tokenizer, QUESTION, CONTEXT, width=48, stride=16)
    assert pair.types == [0] * 4 + [1] * (len(pair.ids) - 4)
    assert [CONTEXT[slice(*s)] for s in pair.spans[4:7]] == ["Ada", "lovelace", "lovelace"]
    row = {name: np.asarray([value]) for name, value in (("ids", pair.ids), ("types", pair.types))}
    apply = jax.jit(
        lambda params: jaxgen.apply(params, bert.config, row["ids"], types=row["types"])
    )
    logits = np.asarray(apply(bert.params).logits)[0]
    allowed = np.asarray([span is not None for span in pair.spans])
    _, wanted = exhaustive(logits.astype(np.float64), allowed, 15)
    for answer, (first, last, score) in zip(found, wanted, strict=False):
        begin, end = pair.spans[first][0], pair.spans[last][1]
        assert (answer.begin, answer.end, answer.text) == (begin, end, CONTEXT[begin:end])
        assert answer.score == pytest.approx(score, rel=1e-4)


def test_no_answer_competes_only_where_it_is_allowed(bert):
    assert all(a.text for a in tasks.answer(bert, [QUESTION], [CONTEXT], best=50)[0])
    found = tasks.answer(bert, [QUESTION], [CONTEXT], best=50, empty="allowed")[0]
    none = [answer for answer in found if not answer.text]
    assert len(none) == 1 and (none[0].begin, none[0].end) == (0, 0)
    scores = [answer.score for answer in found]
    assert scores == sorted(scores, reverse=True) and 0 < none[0].score < 1


def test_a_long_text_is_read_in_windows_that_overlap(bert):
    long = "Ada wrote. " * 40
    parts = pairs(bert.tokenizer, QUESTION, long, width=20, stride=5)
    seen = {span for part in parts for span in part.spans if span}
    assert all(len(part.ids) <= 20 for part in parts) and len(parts) > 5
    assert {long[a:b] for a, b in seen} == {"Ada", "wrote", "."} and max(seen)[1] == len(long) - 1
    (found,) = tasks.answer(bert, [QUESTION], [long], width=20, overlap=5, best=2)
    assert all(long[answer.begin : answer.end] == answer.text for answer in found)


@pytest.mark.parametrize("text", ["naïve café 日本", "plain text of letters"])
def test_any_tokenizer_that_keeps_texts_finds_answers_again(text):
    parts = pairs(Bytes(), "q?", text, width=14, stride=3)
    seen = [span for part in parts for span in part.spans if span]
    assert "".join(dict.fromkeys(text[a:b] for a, b in sorted(set(seen)))) == "".join(
        dict.fromkeys(text)
    )
    for part in parts:
        for token, span in zip(part.ids, part.spans, strict=True):
            if span:
                assert bytes([token]) in text[span[0] : span[1]].encode()


def test_other_models_write_their_answer():
    config = {"topology": "encoder_decoder", "output": "untied"}
    writer = model_of(Bytes(), **config, context=96)
    asked = {"best": 1, "settings": Generation(max_new_tokens=3)}
    (found,) = tasks.answer(writer, ["Q"], ["C"], **asked)
    assert found[0].score is None
    assert (
        found[0].text
        == tasks.rewrite(writer, ["question: Q context: C"], asked["settings"])[0].strip()
    )
    decoder = model_of(Bytes(), output="untied", context=96)
    (found,) = tasks.answer(decoder, ["Q"], ["C"], **asked, form="{context}|{question}=")
    greedy = Generation(max_new_tokens=3, temperature=0.0)
    written = session_of(decoder).complete([(256, *b"C|Q=")], greedy)[0]
    assert found[0].text == written.strip().split("\n")[0].strip()


def test_what_a_folder_forces_is_forced_in_each_row_by_its_own_length():
    # The first token of texts of one token only; the last where this text, not the batch, ends.
    told = GenerationConfig(
        forced_bos_token_id=(65,), forced_eos_token_id=(66, 67), max_length=6, do_sample=False
    )
    model = replace(model_of(Bytes(), output="untied", context=96), generation_config=told)
    rows, session = [(256,), (256, 97, 98), (256, 99)], session_of(model)
    together = session.complete(rows, Generation())
    assert together == [session.complete([row], Generation())[0] for row in rows]
    assert [text[:1] == "A" for text in together] == [True, False, False]
    assert all(text.endswith(("B", "C")) for text in together)


def test_a_row_that_ends_leaves_the_others_their_length():
    told = GenerationConfig(eos_token_id=tuple(range(97, 127)))
    model = replace(model_of(Bytes(), output="untied", init_std=0.05), generation_config=told)
    assert set(model.stop) >= set(told.eos_token_id)
    rows, session = [(256, 65 + i) for i in range(6)], session_of(model)
    asked = Generation(max_new_tokens=40, temperature=1.0)
    # A row's draws depend on its place, which being alone in a batch leaves alone.
    together = session.complete(rows, asked)
    assert together == session.complete(rows, asked, batch=1)
    ended = [len(text.encode(errors="replace")) for text in together]
    assert min(ended) < CHUNK and max(ended) > CHUNK


MISTAKES = [
    (lambda m: tasks.answer(m, ["a"], []), "1 questions but 0 contexts"),
    (lambda m: tasks.answer(m, [""], ["a"]), "question 0 is empty"),
    (lambda m: tasks.answer(m, ["a"], ["a"], best=0), "best=0"),
    (lambda m: tasks.answer(m, ["a"], ["a"], form="x"), "form= is for models that write"),
    (lambda m: tasks.answer(m, ["who " * 40], ["a"]), "leaves 5 for the text"),
    (lambda m: tasks.answer(m, ["who"], ["a"], width=8, overlap=5), "windows overlap by 5"),
]


@pytest.mark.parametrize(("call", "part"), MISTAKES)
def test_what_can_not_be_answered_is_one_line(bert, call, part):
    with pytest.raises(ConfigError, match=part):
        call(bert)


def test_the_verb_answers_about_one_text_or_about_many(tmp_path, monkeypatch, capsys, bert):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    jaxgen.save(tmp_path / "m", bert.config, bert.params, tokenizer=bert.tokenizer)
    (tmp_path / "text.txt").write_text(CONTEXT)
    context = ["--context", f"@{tmp_path / 'text.txt'}"]
    assert app.main(["answer", str(tmp_path / "m"), QUESTION, *context]) == 0
    (wanted,) = tasks.answer(bert, [QUESTION], [CONTEXT])
    text, score = capsys.readouterr().out.strip().split("\t")
    assert text == " ".join(wanted[0].text.split()) and score == f"{wanted[0].score:.4f}"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": QUESTION, "context": CONTEXT}) + "\n")
    out = tmp_path / "out.jsonl"
    words = ["answer", str(tmp_path / "m"), "--input", str(rows), "--output", str(out)]
    assert app.main([*words, "--best", "2"]) == 0
    result = json.loads(out.read_text())["result"]
    assert len(result) == 2 and result[0]["text"] == wanted[0].text
    rows.write_text(json.dumps({"question": QUESTION}) + "\n")
    assert app.main(words) == 2
    assert "rows.jsonl:1 is no object with context" in capsys.readouterr().err
