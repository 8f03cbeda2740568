"""Every field that the API documents is honoured, ignored for a reason, or refused for one."""

import importlib

import pytest

from jaxgen.serve import fields
from jaxgen.serve.fields import Field, read
from jaxgen.serve.problems import Problem
from jaxgen.text.request import DEFAULTS

DOCUMENTED = [
    ("chat.completion_create_params.CompletionCreateParamsStreaming", fields.CHAT),
    ("completion_create_params.CompletionCreateParamsStreaming", fields.COMPLETION),
    ("embedding_create_params.EmbeddingCreateParams", fields.EMBEDDING),
    ("responses.response_create_params.ResponseCreateParamsStreaming", fields.RESPONSE),
    ("chat.ChatCompletionSystemMessageParam", fields.MESSAGES["system"]),
    ("chat.ChatCompletionDeveloperMessageParam", fields.MESSAGES["developer"]),
    ("chat.ChatCompletionUserMessageParam", fields.MESSAGES["user"]),
    ("chat.ChatCompletionAssistantMessageParam", fields.MESSAGES["assistant"]),
    ("chat.ChatCompletionToolMessageParam", fields.MESSAGES["tool"]),
    ("chat.ChatCompletionFunctionToolParam", fields.TOOL),
    ("shared_params.FunctionDefinition", fields.FUNCTION),
    ("chat.ChatCompletionMessageFunctionToolCallParam", fields.CALL),
    ("chat.ChatCompletionStreamOptionsParam", fields.STREAM_OPTIONS),
    ("shared_params.response_format_json_schema.JSONSchema", fields.SCHEMA),
    ("responses.FunctionToolParam", fields.RESPONSE_TOOL),
]


@pytest.mark.parametrize(("name", "table"), DOCUMENTED, ids=[name for name, _ in DOCUMENTED])
def test_every_documented_field_is_in_the_table(name, table):
    pytest.importorskip("openai")
    home, _, kind = name.rpartition(".")
    documented = getattr(importlib.import_module(f"openai.types.{home}"), kind)
    keys = set()
    for one in documented.__mro__:
        keys |= set(getattr(one, "__annotations__", {}))
    assert keys and not keys - table.keys()


TABLES = {
    name: table
    for name, table in vars(fields).items()
    if name.isupper() and isinstance(table, dict)
}


def test_a_field_is_one_of_three():
    for name, table in TABLES.items():
        for key, field in table.items():
            if isinstance(field, Field):
                assert not (field.ignored and field.refused), (name, key)
                assert not field.harmless or field.refused, (name, key)


def test_our_own_settings_are_fields_of_texts():
    for table in (fields.CHAT, fields.COMPLETION, fields.RESPONSE):
        for name in DEFAULTS.keys() - {"top_logprobs"}:
            assert table[name].refused or table[name].sets == name or name in fields._DRAWS, name


def chat(**given):
    return read({"model": "m", "messages": [1]} | given, fields.CHAT)


@pytest.mark.parametrize("name", [name for name, field in fields.CHAT.items() if field.refused])
def test_what_cannot_be_followed_is_refused_by_name(name):
    with pytest.raises(Problem, match="is not supported") as caught:
        chat(**{name: {"odd": 1}})
    assert caught.value.param == name and caught.value.status == 400
    for value in (None, *fields.CHAT[name].harmless):
        assert name not in chat(**{name: value})
    assert name not in read({"model": "m", "messages": [], name: "x"}, fields.CHAT, lenient=True)


@pytest.mark.parametrize(
    ("given", "said", "param"),
    [
        ({"temprature": 1}, "did you mean 'temperature'", "temprature"),
        ({"max_token": 1}, "did you mean 'max_tokens'", "max_token"),
        ({"n": "3"}, "write 3", "n"),
        ({"n": True}, "is a boolean", "n"),
        ({"n": 2.5}, "wants an integer", "n"),
        ({"top_p": 0}, "greater than 0", "top_p"),
        ({"beams": "2"}, "write 2", "beams"),
        ({"logit_bias": {"5": "x"}}, "wants a number", "logit_bias"),
    ],
)
def test_a_wrong_field_is_named(given, said, param):
    with pytest.raises(Problem, match=said) as caught:
        chat(**given)
    assert caught.value.param == param


def test_two_names_of_one_setting_must_agree():
    same = chat(max_tokens=3, max_completion_tokens=3)
    assert fields.settings_of(same, fields.CHAT) == {"max_new_tokens": 3}
    with pytest.raises(Problem, match="say the same differently"):
        fields.settings_of(chat(max_tokens=3, max_completion_tokens=4), fields.CHAT)
