"""Calls of tools: what a pattern allows can be read back, in pieces of any size."""

import json
import random
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.text import tool_calls, tool_formats
from jaxgen.text.processors import ChainContext, parts_of
from jaxgen.text.request import Generation
from jaxgen.text.tool_calls import CallReader, Marked, Said
from jaxgen.tokens.plain import Bytes

WEATHER = {"city": {"type": "string"}, "n": {"type": "integer"}}
TOOLS = [
    {"name": "get_weather",
     "parameters": {"type": "object", "properties": WEATHER, "required": ["city"]}},
    {"name": "now", "parameters": {}},
]  # fmt: skip
FORMATS = {one.name: one for one in tool_formats.FORMATS}
FORMATS["llama-one"] = tool_formats.LLAMA._replace(one=True)


def texts_of(spelling, free):
    """Return (texts that are allowed, those that are not)."""
    values = '{"city": "Pa}\\"{ris", "n": 3}', "{}"
    if spelling.xml:
        values = (
            "<parameter=city>\nPa <x>\n\nris\n</parameter>\n<parameter=n>\n3\n</parameter>\n",
            "",
        )
    first, second = (
        f"{spelling.prefix}{tool['name']}{spelling.middle}{value}{spelling.suffix}"
        for tool, value in zip(TOOLS, values, strict=True)
    )
    one = f"{spelling.head}{first}{spelling.tail}"
    many = f"{spelling.head}{first}{spelling.sep}{second}{spelling.sep}{first}{spelling.tail}"
    good, bad = [one], [f"{one}x", one[:-1]]
    (bad if spelling.one else good).append(many)
    if free:
        good += ["hello", "", "a < b <tool <tool_c [TOOL] x", "\n  hi {", "x" * 50]
        if spelling.trigger:
            good += [f"Let me see.\n{one}"]
            bad += [f"a {spelling.trigger} b"]
        else:
            bad += ["{x", '  {"a": 1}']
    else:
        bad += ["hello", ""]
    return good, bad


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_allowed_is_read_back_from_any_pieces(name, free):
    spelling, draw = FORMATS[name], random.Random(0)
    pattern = tool_formats.pattern(spelling, TOOLS, free=free, several=True)
    good, bad = texts_of(spelling, free)
    for text in bad:
        assert not re.fullmatch(pattern, text), text
    for text in good:
        assert re.fullmatch(pattern, text), text
        reader = CallReader(spelling, {tool["name"]: tool for tool in TOOLS}, free)
        reader.push(text)
        reader.flush()
        said, calls = reader.said, reader.calls
        assert bool(calls) == ("get_weather" in text)
        if calls:
            assert json.loads(calls[0].arguments)["n"] == 3
            assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
        else:
            assert said == text
        for _ in range(5):
            reader, parts, place = CallReader(spelling, {t["name"]: t for t in TOOLS}, free), [], 0
            while place < len(text):
                size = draw.randint(1, 4)
                parts += reader.push(text[place : place + size])
                place += size
            parts += reader.flush()
            assert (reader.said, reader.calls) == (said, calls)
            assert "".join(part.text for part in parts if isinstance(part, Said)) == said


TEMPLATES = {
    "hermes": '{% if tools %}<tool_call>\n{"name": <function-name>, "arguments": 1}\n</tool_call>',
    "smollm": '{% if tools %}<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
    "llama": '{% if tools %}Respond in the format {"name": function name, "parameters": {}}.',
    "mistral": "{% if tools %}{{ '[TOOL_CALLS][' }}",
    "mistral-args": "{% if tools %}{{ '[TOOL_CALLS]' + name + '[ARGS]' }}",
    "qwen-xml": "{% if tools %}<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>",
    "plain": "{{ messages }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_says_how_calls_are_spelled(name):
    template = ChatTemplate(TEMPLATES[name], {})
    assert tool_formats.format_of(template).name == name
    assert tool_formats.reads_tools(template) == (name != "plain")


def test_what_can_not_be_held_to_is_refused_only_where_it_is_to_be_exact():
    bounded = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    tool = {"name": "f", "parameters": bounded}
    how = {"free": False, "several": False}
    assert tool_formats.pattern(tool_formats.PLAIN, [tool], **how)
    with pytest.raises(ConfigError, match=r"tools\[0\].*properties.n.minimum=1 can't be held to"):
        tool_formats.pattern(tool_formats.PLAIN, [tool | {"strict": True}], **how)


def test_earlier_calls_are_told_in_the_words_of_the_template():
    call = {"id": "call_abcdefgh", "function": {"name": "f", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_abcdefgh", "content": "2"},
    ]
    _, asked, told = tool_calls.history(turns, plain=False)
    (row,) = asked["tool_calls"]
    assert re.fullmatch("[a-z0-9]{9}", row["id"]) and row["id"] == told["tool_call_id"]
    assert row["function"]["arguments"] == {"a": 1} and told["name"] == "f"
    _, asked, told = tool_calls.history(turns, plain=True)
    assert asked == {"role": "assistant", "content": '{"name": "f", "arguments": {"a": 1}}'}
    assert told == {"role": "user", "content": "Result of f: 2"}


def test_a_mark_that_an_expression_names_is_that_mark():
    class Marks(Bytes):
        """Bytes with a mark of the id 258."""

        def marks(self):
            return ["[TOOL_CALLS]"]

        def vocabulary(self):
            return {"[TOOL_CALLS]": 258}

    one = np.asarray([8], np.int32)
    about = ChainContext(Marks(), 259, one[None], one, one[None], one)
    settings = Generation(regex=r"a\[TOOL_CALLS\]b", max_new_tokens=8)
    automaton = parts_of([settings], about, ("regex",))["regex"]
    state = jnp.asarray(automaton.starts)
    for token in (97, 258, 98):
        assert automaton.advance(state, jnp.asarray([258 if token == 97 else 97]))[0] < 0
        state = automaton.advance(state, jnp.asarray([token]))
        assert state[0] >= 0
    assert Marked(Marks(), ["[TOOL_CALLS]"]).surface.decode([97, 258]) == "a[TOOL_CALLS]"
