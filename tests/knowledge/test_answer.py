"""Answers rest on passages, cite what stands there, and say when nothing does."""

import json

import jax
import pytest
from small_documents import DOCS

import jaxgen
from jaxgen.cli import app
from jaxgen.errors import ConfigError
from jaxgen.knowledge import answer, index
from jaxgen.tokens.plain import Bytes

QUESTION = "Where does a heron stand?"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    config = jaxgen.ModelConfig(vocab_size=259, context=1024, layers=1, d_model=16, heads=2)
    home = tmp_path_factory.mktemp("model") / "small"
    jaxgen.save(home, config, jaxgen.init(config, jax.random.key(0)), tokenizer=Bytes())
    return home


@pytest.fixture(scope="module")
def session(home):
    return jaxgen.open(home)


@pytest.fixture(scope="module")
def opened(docs, tmp_path_factory):
    home = tmp_path_factory.mktemp("words") / "index"
    index.build([docs], home, size=60, overlap=0)
    return index.open_index(home)


def ask(session, opened, question, **more):
    return answer.ask(session, opened, question, max_new_tokens=4, temperature=0.0, **more)


SAID = "A heron stands in water and eats fish, but does it sing? Owls hunt at night, they say."


@pytest.fixture
def fluent(monkeypatch, session):
    """What an untrained model would say if it could."""
    monkeypatch.setattr(type(session), "generate", lambda *args, **more: SAID)


def test_every_citation_stands_in_its_document(session, opened, docs, fluent):
    said = ask(session, opened, QUESTION, quotes=3, count=3)
    assert len(said.citations) == 3 == len({one.quote for one in said.citations})
    for one in said.citations:
        assert answer.is_verified(opened, one)
        assert not answer.is_verified(opened, one._replace(start=one.start + 1))
        assert not answer.is_verified(opened, one._replace(document="elsewhere"))
        assert any(hit.start <= one.start and one.end <= hit.end for hit in said.hits)
        assert one.quote in "".join(DOCS.values()) and not one.quote.startswith("#")
    assert ask(session, opened, QUESTION, quotes=0).citations == []
    every = ask(session, opened, "owls hunt", quotes=9, count=1)
    assert every.hits[0].text.startswith("#") and every.citations
    assert not any(one.quote.startswith("#") for one in every.citations)


def test_the_quote_is_the_sentence_that_shares_most_with_the_answer(opened, session):
    hits = opened.search("heron water owls hunt eats", 9)
    for answered, quoted in (
        ("It eats fish, I think.", "It eats fish!"),
        ("Water: there a heron stands.", "A heron stands in the water."),
        ("Owls hunt at night, as they say.", "Owls hunt at night."),
        ("Bananas are yellow.", None),
    ):
        found = answer._quoted(session, opened, QUESTION, answered, hits, 1)
        assert [one.quote.strip() for one in found] == ([] if quoted is None else [quoted]), (
            answered
        )


def test_passages_that_leave_no_room_are_left_out(session, opened):
    question = "leave heron owls water fish night does"
    said = ask(session, opened, question, count=9, quotes=0)
    assert 0 < len(said.hits) < len(opened.search(question, 9))
    prompt, hits = answer._prompt(session, QUESTION, said.hits)
    assert all(hit.text in prompt for hit in hits) and QUESTION in prompt


def test_without_a_passage_it_is_the_plain_text(session, opened):
    how = {"max_new_tokens": 8, "seed": 5}
    said = answer.ask(session, opened, "zzz?", **how)
    assert said.hits == [] == said.citations and said.confidence == 0
    assert said.text == session.generate("zzz?", **how)
    messages = [{"role": "user", "content": "zzz?"}]
    assert answer.grounded(opened, session, messages) == (messages, [])


def test_a_chat_gets_passages_before_its_last_message(session, opened):
    before = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    after, hits = answer.grounded(opened, session, before, count=2)
    assert after[0] == before[0] and hits and before[1]["content"] == QUESTION
    assert hits[0].text in after[1]["content"] and after[1]["content"].endswith(QUESTION)


def test_a_threshold_tells_what_is_there_from_what_is_not(session, docs, tmp_path):
    index.build([docs], tmp_path / "index", size=60, overlap=0)
    opened = index.open_index(tmp_path / "index")
    asked = {"granite hard": True, "owls hunt at night": True, "trains leave at noon": True,
             "tax forms at noon": False, "how to bake a cake": False}  # fmt: skip
    rows = [{"question": q, "answerable": known} for q, known in asked.items()]
    threshold = answer.calibrate(opened, rows)
    opened = index.open_index(tmp_path / "index")
    assert opened.threshold == threshold and 0 < threshold < 1
    for question, known in asked.items():
        hits = opened.search(question)
        assert (opened.confidence(question, hits) >= threshold) is known
    said = ask(session, opened, "how to bake a cake")
    assert said.text == answer.NOT_THERE and not said.hits
    alone = answer.calibrate(opened, rows[:3])
    assert alone == min(opened.confidence(q, opened.search(q)) for q in list(asked)[:3])
    for wrong, said in [(rows[3:], "no question is answerable"), ([{"question": 1}], "question 1")]:
        with pytest.raises(ConfigError, match=said):
            answer.calibrate(opened, wrong)


def test_the_verbs_ask_and_calibrate(home, docs, tmp_path, capsys, fluent):
    place = str(tmp_path / "index")
    index.build([docs], place, size=60, overlap=0)
    few = ["--max-new-tokens", "4", "--temperature", "0"]
    assert app.main(["ask", str(home), place, QUESTION, "--json", "--passages", "3", *few]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["question"] == QUESTION and row["passages"] and len(row["citations"]) == 1
    assert app.main(["ask", str(home), place, QUESTION, "--quotes", "0", *few]) == 0
    assert "answer" not in capsys.readouterr().out
    (tmp_path / "q.jsonl").write_text('{"question": "granite hard"}\n')
    assert app.main(["calibrate", place, str(tmp_path / "q.jsonl")]) == 0
    assert "1.0000" in capsys.readouterr().out
    assert app.main(["ask", str(home), place, "walrus granite cake oven", *few]) == 0
    assert answer.NOT_THERE in capsys.readouterr().out
    assert app.main(["ask", str(home), place, "granite", "owls", *few, "--verify", "off"]) == 0
    shown = capsys.readouterr().out
    assert "=== 1 of 2: granite\n" in shown and "=== 2 of 2: owls\n" in shown
    assert app.main(["ask", place, str(home), "x"]) == 2
    assert f"is an index, and the model comes first: jaxgen ask {home}" in capsys.readouterr().err
    wrong = {
        ("ask", str(home), place, " "): 2,
        ("ask", str(home), str(home), "x"): 4,
        ("ask", str(home), place, "x", "--samples", "2"): 2,
        ("calibrate", place, str(tmp_path / "none.jsonl")): 2,
    }
    for words, code in wrong.items():
        assert app.main(list(words)) == code, words
        assert capsys.readouterr().err.count("jaxgen: error") == 1


def test_what_is_no_decoder_is_refused(encoder, opened):
    with pytest.raises(ConfigError, match="generation needs a decoder"):
        ask(jaxgen.open(encoder), opened, QUESTION)
