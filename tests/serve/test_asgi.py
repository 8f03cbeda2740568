"""The endpoints, over a real connection: what they answer, whole and streamed."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

from jaxgen import ModelConfig, Stem
from jaxgen.errors import ConfigError
from jaxgen.serve import app
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation

SAID = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": SAID, "max_tokens": 8, "seed": 1}
TEXT = {"model": "tiny", "prompt": "Hi", "max_tokens": 8, "seed": 1}
A, B = "/v1/chat/completions", "/v1/completions"


def alone(session, text, number=0, **changes):
    """What the library says to the same request."""
    settings = Generation(**{"max_new_tokens": 8, "seed": 1} | changes)
    (found,) = session.run([Prompt(text, settings, number)], detail=True)
    return found


def test_a_chat_is_answered_as_by_the_library(send, session):
    found = send(A, CHAT | {"temperature": 0}).json
    (choice,) = found["choices"]
    ids = session.chat_ids(SAID)
    (wanted,) = alone(session, ids, temperature=0.0)
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert choice["finish_reason"] == "length" and found["object"] == "chat.completion"
    assert found["usage"]["prompt_tokens"] == len(ids)
    assert found["usage"]["total_tokens"] == len(ids) + 8


SETTINGS = [
    ({"n": 2, "temperature": 0.7}, {"samples": 2, "temperature": 0.7}),
    ({"top_p": 0.5, "top_k": 5, "min_p": 0.01}, {"top_p": 0.5, "top_k": 5, "min_p": 0.01}),
    ({"presence_penalty": 1, "frequency_penalty": -1}, 
     {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
    ({"logit_bias": {"65": 100, "66": 99}}, {"bias_ids": ("65=100.0", "66=99.0")}),
    ({"beams": 2, "n_best": 2}, {"beams": 2, "n_best": 2}),
    ({"seed": -1}, {"seed": 2**64 - 1}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "ours"), SETTINGS, ids=[next(iter(a)) for a, _ in SETTINGS])
def test_fields_are_settings_of_the_library(canned, given, ours):
    found = canned.send(B, TEXT | given)
    assert found.status == 200, found.text
    wanted = Generation(**{"max_new_tokens": 8, "seed": 1} | ours)
    assert canned.engine.prompts[-1] == Prompt("Hi", wanted)
    assert len(found.json["choices"]) == (wanted.n_best or wanted.samples)


def test_prompts_of_all_kinds(canned, session):
    ids = session.ids("Hi")
    for prompt, wanted in (("Hi", ["Hi"]), (["Hi", "Ho"], ["Hi", "Ho"]), (ids, [ids]),
                           ([ids, [5]], [ids, [5]])):  # fmt: skip
        found = canned.send(B, TEXT | {"prompt": prompt, "n": 2}).json["choices"]
        read = canned.engine.prompts[-len(wanted) :]
        assert [one.text for one in read] == wanted
        assert [one.number for one in read] == [0, 2][: len(wanted)]
        assert [one["index"] for one in found] == list(range(2 * len(wanted)))
        assert [one["text"][0] for one in found] == ["a", "b"] * len(wanted)


def test_log_probabilities_are_those_of_the_library(send, session):
    given = {"logprobs": 2, "echo": True, "prompt": "abcd", "n": 2}
    found = send(B, TEXT | given).json["choices"]
    ids = session.ids("abcd")
    for choice, wanted in zip(
        found, alone(session, "abcd", top_logprobs=2, samples=2), strict=True
    ):
        rows = choice["logprobs"]
        assert choice["text"] == "abcd" + wanted.text
        assert rows["token_logprobs"][len(ids) :] == pytest.approx(wanted.logprobs, rel=1e-4)
        best = [row[0].logprob for row in wanted.top]
        told = [max(row.values()) for row in rows["top_logprobs"][len(ids) :]]
        assert told == pytest.approx(best, rel=1e-4)
        assert rows["token_logprobs"][0] is None and rows["top_logprobs"][0] is None
        assert rows["tokens"][1 : len(ids)] == list("abcd")
        assert rows["text_offset"][0] == 0 and len(rows["text_offset"]) == len(ids) + 8
        # What is said of the prompt is the score of the text, but for its end.
        ((total, count),) = session.score(["abcd"])
        assert count == len(ids) and total < sum(rows["token_logprobs"][1 : len(ids)]) < 0
    streamed = send.events(B, TEXT | given)
    for choice in found:
        own = [row for one in streamed for row in one["choices"] if row["index"] == choice["index"]]
        assert "".join(row["text"] for row in own) == choice["text"]
        joined = [x for row in own if row["logprobs"] for x in row["logprobs"]["token_logprobs"]]
        assert joined == choice["logprobs"]["token_logprobs"]


def test_log_probabilities_of_a_chat(canned):
    found = canned.send(A, CHAT | {"logprobs": True, "top_logprobs": 1}).json["choices"][0]
    rows = found["logprobs"]["content"]
    assert "".join(row["token"] for row in rows) == found["message"]["content"]
    assert rows[0]["bytes"] == [97] and rows[0]["top_logprobs"][0]["token"] == "a"
    assert [len(row["top_logprobs"]) for row in rows] == [1] * 8
    assert canned.send(A, CHAT).json["choices"][0]["logprobs"] is None
    canned.engine.script = "ab"  # and the end, which is no part of it
    found = canned.send(A, CHAT | {"logprobs": True}).json["choices"][0]
    canned.engine.script = None
    assert [row["token"] for row in found["logprobs"]["content"]] == ["a", "b"]
    assert found["finish_reason"] == "stop"


def test_the_best_of_many_is_kept(canned):
    found = canned.send(B, TEXT | {"best_of": 3, "n": 2}).json["choices"]
    assert [one["text"][0] for one in found] == ["a", "b"]
    assert [one["index"] for one in found] == [0, 1]
    assert canned.send(B, TEXT | {"best_of": 3, "stream": True}).status == 400


@pytest.mark.parametrize(
    "more", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 1}, {"stop": "e"}]
)
def test_chunks_of_a_chat_add_up(canned, more):
    whole = canned.send(A, CHAT | more).json
    events = canned.send.events(A, CHAT | more | {"stream_options": {"include_usage": True}})
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    assert {one["object"] for one in events} == {"chat.completion.chunk"}
    assert all(one["usage"] is None for one in events[:-1])
    for wanted in whole["choices"]:
        rows = [
            one["choices"][0]
            for one in events[:-1]
            if one["choices"][0]["index"] == wanted["index"]
        ]
        assert rows[0]["delta"]["role"] == "assistant"
        text = "".join(row["delta"].get("content", "") for row in rows)
        assert text == wanted["message"]["content"]
        assert [row["finish_reason"] for row in rows if row["finish_reason"]] == [
            wanted["finish_reason"]
        ]
        if "logprobs" in more:
            said = [x for row in rows if row["logprobs"] for x in row["logprobs"]["content"]]
            assert said == wanted["logprobs"]["content"]


def test_a_stop_string_ends_a_text(canned):
    found = canned.send(A, CHAT | {"stop": ["d"]}).json["choices"][0]
    assert found["message"]["content"] == "abc" and found["finish_reason"] == "stop"


FORMS = [
    ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}, "-12"),
    ({"type": "json_object"}, '{"a": [1, "b"], "c": {"d": null}}'),
    ({"type": "regex", "regex": "[0-9]{3}"}, "123"),
]


@pytest.mark.parametrize(("form", "text"), FORMS, ids=[form["type"] for form, _ in FORMS])
def test_forms_of_an_answer(canned, form, text):
    assert canned.send(A, CHAT | {"response_format": form}).status == 200
    regex = canned.engine.prompts[-1].settings.regex
    assert re.fullmatch(regex, text) and not re.fullmatch(regex, f"{text}x")


def test_the_engine_holds_to_a_form_and_streams_it(send):
    form = {"type": "json_schema", "json_schema": {"name": "b", "schema": {"type": "boolean"}}}
    given = CHAT | {"response_format": form}
    (choice,) = send(A, given).json["choices"]
    assert choice["message"]["content"] in ("true", "false") and choice["finish_reason"] == "stop"
    rows = [row["choices"][0]["delta"] for row in send.events(A, given)]
    assert "".join(row.get("content") or "" for row in rows) == choice["message"]["content"]


def test_responses_are_whole_and_in_events(canned):
    given = {"model": "tiny", "input": "Hi", "max_output_tokens": 5, "instructions": "Be short",
             "metadata": {"a": "b"}}  # fmt: skip
    whole = canned.send("/v1/responses", given).json
    (item,) = whole["output"]
    assert item["content"][0]["text"] == "abcde" and whole["status"] == "incomplete"
    assert whole["metadata"] == {"a": "b"} and whole["usage"]["output_tokens"] == 5
    events = canned.send.events("/v1/responses", given)
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    kinds = [one["type"].removeprefix("response.") for one in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(one["delta"] for one in events if one["type"].endswith("text.delta")) == "abcde"
    assert events[-1]["response"]["output"][0]["content"] == item["content"]


def test_embeddings_and_scores(send, session):
    found = send("/v1/embeddings", {"model": "tiny", "input": ["ab", "c"]}).json
    wanted = session.embed(["ab", "c"])
    vectors = [row["embedding"] for row in found["data"]]
    np.testing.assert_allclose(vectors, wanted, rtol=1e-6)
    given = {"model": "tiny", "input": "ab", "encoding_format": "base64", "dimensions": 16}
    coded = send("/v1/embeddings", given).json
    raw = base64.b64decode(coded["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), wanted[0], rtol=1e-6)
    assert found["usage"]["prompt_tokens"] == 7  # with those around
    (row,) = send("/score", {"model": "tiny", "input": "abc"}).json["data"]
    assert (row["logprob"], row["tokens"]) == pytest.approx(session.score(["abc"])[0])


def test_tokens_and_back(send, session):
    found = send("/tokenize", {"model": "tiny", "prompt": "aé"}).json
    assert found["tokens"] == session.model.ids("aé") and found["max_model_len"] == 64
    bare = send("/tokenize", {"prompt": "aé", "add_special_tokens": False}).json
    assert bare["tokens"] == [97, 195, 169] and bare["count"] == 3
    chat = send("/tokenize", {"model": "tiny", "messages": SAID}).json
    assert chat["tokens"] == list(session.chat_ids(SAID))
    assert send("/detokenize", {"tokens": [97, 195, 169]}).json == {"prompt": "aé"}


def test_models_and_metrics(send):
    found = send("/v1/models").json
    assert [(row["id"], row["max_model_len"]) for row in found["data"]] == [("tiny", 64)]
    assert send("/v1/models/tiny").json == found["data"][0]
    send(B, TEXT)
    text = send("/metrics").text
    assert 'jaxgen_requests_total{route="/v1/completions",status="200"}' in text
    assert 'jaxgen_engine_slots{model="tiny"} 2.0' in text and "jaxgen_requests_running 1.0" in text
    assert 'jaxgen_tokens_total{kind="text",model="tiny"}' in text


def test_a_context_bounds_the_models_that_reach_further(session):
    config = replace(session.config, context=128)
    short = replace(session, model=replace(session.model, config=config))
    models = app({"long": session, "short": short}, context=256, slots=1).state.server.models
    assert {name: one.engine.context for name, one in models.items()} == {"long": 256, "short": 128}
    with pytest.raises(ConfigError, match="context=4096 is more than the model's context=2048"):
        app({"long": session, "short": short}, context=4096, slots=1)


STEMS = [
    (Stem(), "reads sound, .*; use `jaxgen transcribe`"),
    (Stem(kind="patches", channels=3, size=4, patch=2), "reads images, .*; use `jaxgen caption`"),
]


@pytest.mark.parametrize(("stem", "said"), STEMS)
def test_a_model_that_reads_no_text_is_not_served(session, stem, said):
    config = ModelConfig(
        topology="encoder", head="none", layers=1, d_model=16, heads=2, context=2048,
        positions="none", vocab_size=2, stem=stem,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        app({"it": replace(session, model=replace(session.model, config=config))}, slots=1)


def test_the_page_has_no_external_asset(send):
    found = send("/")
    assert found.status == 200 and "default-src 'none'" in found.headers["content-security-policy"]
    assert (
        "http://" not in found.text.replace("http://www.w3.org", "")
        and "https://" not in found.text
    )
