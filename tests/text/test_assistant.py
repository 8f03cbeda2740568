"""Functions that a model calls: their schemas, and the turns until it says something."""

from typing import Any, Literal

import pytest

import jaxgen
from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate, write_chat_template
from jaxgen.text import assistant
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.text.tool_sources import schema_of
from jaxgen.tokens.plain import Bytes

CONFIG = jaxgen.ModelConfig(vocab_size=259, context=32, layers=1, d_model=8, heads=2)


def weather(city: str, unit: Literal["c", "f"] = "c", days: int | None = None) -> dict:
    """Return the weather of a city.

    Args:
      city: its name.
    """
    if city == "Atlantis":
        raise KeyError(city)
    return {"degrees": 21, "unit": unit}


def test_a_function_is_a_schema():
    tool = schema_of(weather)
    assert (tool["name"], tool["description"]) == ("weather", "Return the weather of a city.")
    assert tool["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "its name."},
            "unit": {"enum": ["c", "f"]},
            "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["city"],
    }

    def listed(a: list[float], b: dict, c: Any, d: bool) -> None: ...

    kinds = schema_of(listed)["parameters"]["properties"]
    assert kinds["a"] == {"type": "array", "items": {"type": "number"}}
    assert (kinds["b"], kinds["c"], kinds["d"]) == ({"type": "object"}, {}, {"type": "boolean"})


def test_what_is_no_schema_is_refused_by_name():
    def bare(a): ...
    def odd(a: complex): ...
    def many(*a: int): ...

    for function in (bare, odd, many):
        with pytest.raises(ConfigError, match=rf"{function.__name__}\(a\)"):
            schema_of(function)


class Scripted:
    """A session that says what it is told to."""

    def __init__(self, home, *said):
        write_chat_template(home, ChatTemplate("{{ messages }}", {}))
        self.tokenizer, self.said, self.asked = Bytes(), list(said), []
        self.context, self.users, self.policy = 400, [], None
        self.model = LoadedModel(CONFIG, {}, self.tokenizer, home=home)

    def chat_ids(self, messages, template, **values):
        self.asked.append(messages)
        return (1,)

    def run(self, prompts):
        text = self.said.pop(0)
        self.regex = prompts[0].settings.regex
        self.users.append(prompts[0].user)
        return [[Completion(text, Reason.STOP, [*text.encode(), 257], 1)]]


CALL = '{{"name": "weather", "arguments": {{"city": "{}"}}}}'
ASKED = [{"role": "user", "content": "Weather?"}]


def test_calls_are_made_until_a_text_comes(tmp_path):
    session, shown = Scripted(tmp_path, CALL.format("Paris"), "Warm."), []
    turns = assistant.answer(session, ASKED, [weather], shown=lambda *a: shown.append(a))
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "assistant"]
    assert turns[-1]["content"] == "Warm." and shown[0][:2] == ("weather", {"city": "Paris"})
    assert turns[1]["content"] == '{"degrees": 21, "unit": "c"}'
    assert "degrees" in session.asked[1][-1]["content"]
    assert "weather" in session.asked[0][0]["content"]  # the template does not know of tools


@pytest.mark.parametrize("form", [{"regex": "a+"}, {"choices": ("a",)}, {"json_schema": "{}"}])
def test_a_form_of_the_text_and_tools_exclude_each_other(form, tmp_path):
    with pytest.raises(ConfigError, match=f"{next(iter(form))} and tools exclude each other"):
        assistant.answer(Scripted(tmp_path), ASKED, [weather], Generation(**form))


def test_what_a_function_raises_is_its_result(tmp_path):
    session = Scripted(tmp_path, CALL.format("Atlantis"), "I don't know.")
    turns = assistant.answer(session, ASKED, [weather])
    assert turns[1]["content"] == "error: KeyError: 'Atlantis'"


def test_after_the_last_call_only_a_text_can_come(tmp_path):
    session = Scripted(tmp_path, "\n".join([CALL.format("Paris")] * 3), "Done.")
    turns = assistant.answer(session, ASKED, [weather], Generation(), calls=2)
    assert len(turns[0]["tool_calls"]) == 2 and turns[-1]["content"] == "Done."
    assert session.regex is None


def test_a_call_that_is_not_wanted_is_not_made(tmp_path):
    session = Scripted(tmp_path, CALL.format("Paris"), "Well.")
    turns = assistant.answer(session, ASKED, [weather], confirm=lambda name, given: False)
    assert "does not want" in turns[1]["content"]


def test_a_long_result_is_cut_and_the_model_reads_that_it_is(tmp_path):
    def page() -> str:
        return "x" * 1000

    session = Scripted(tmp_path, '{"name": "page", "arguments": {}}', "Long.")
    result = assistant.answer(session, ASKED, [page])[1]["content"]
    assert result == "x" * 100 + "\n[cut here: 900 of 1000 tokens are left out]"


def test_the_user_of_a_chat_with_tools_is_the_sessions(tmp_path):
    session = Scripted(tmp_path, CALL.format("Paris"), "Warm.")
    assistant.answer(session, ASKED, [weather], calls=1, user="ann")
    assert session.users == ["ann", "ann"]
