"""The `openai` package, used as its documentation writes it."""

import json
import re

import pytest
from fake_engine import FakeEngine
from loopback import serving, wait_for

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

SAID = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather.",
            "parameters": PARAMETERS,
            "strict": True,
        },
    }
]
GIVEN = '{"city": "Paris", "unit": "c"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {GIVEN}}}\n</tool_call>'


@pytest.fixture(scope="module")
def service(session):
    with serving({"tiny": FakeEngine(session)}, keys=["secret"]) as found:
        yield found


@pytest.fixture
def client(service):
    made = openai.OpenAI(
        base_url=f"http://127.0.0.1:{service.port}/v1", api_key="secret", max_retries=0
    )
    yield made
    made.close()
    service.engine.script = None


@pytest.fixture
def says(service):
    """Let the model say a text, which the request has to allow."""

    def set_script(text):
        service.engine.script = text

    return set_script


def allowed(service, text):
    return re.fullmatch(service.engine.prompts[-1].settings.regex, text)


def test_chat(client):
    found = client.chat.completions.create(
        model="tiny", messages=SAID, max_tokens=5, temperature=0.5, seed=7, n=2, user="somebody"
    )
    assert [one.message.content for one in found.choices] == ["abcde", "bcdef"]
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 10
    assert found.model == "tiny" and found.id.startswith("chatcmpl-")


def test_a_stream_of_a_chat(client, says):
    with client.chat.completions.create(
        model="tiny",
        messages=SAID,
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == "abcdefg" and chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 7
    says("abcd")
    with client.chat.completions.stream(model="tiny", messages=SAID) as stream:
        events = [one.type for one in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "abcd" and "content.done" in events


def test_log_probabilities(client):
    found = client.chat.completions.create(
        model="tiny", messages=SAID, max_tokens=3, logprobs=True, top_logprobs=2
    )
    rows = found.choices[0].logprobs.content
    assert [row.token for row in rows] == ["a", "b", "c"] and len(rows[0].top_logprobs) == 2


def test_completions(client):
    found = client.completions.create(model="tiny", prompt=["Hi", "Ho"], max_tokens=3, logprobs=1)
    assert [one.text for one in found.choices] == ["abc", "abc"]
    assert found.choices[0].logprobs.tokens == ["a", "b", "c"]
    parts = client.completions.create(model="tiny", prompt="Hi", max_tokens=6, stream=True)
    assert "".join(one.choices[0].text for one in parts) == "abcdef"


def test_tools(client, service, says):
    says(f"Let me see. {CALL}")
    about = {"model": "tiny", "messages": SAID, "tools": TOOLS, "max_tokens": 200}
    found = client.chat.completions.create(**about, tool_choice="auto")
    assert allowed(service, service.engine.script)
    (choice,) = found.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see. "
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris", "unit": "c"}
    # The answer, and the next turn.
    says("Warm.")
    turns = [*SAID, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "20"}]
    found = client.chat.completions.create(**about | {"messages": turns})
    assert found.choices[0].message.content == "Warm." and not found.choices[0].message.tool_calls
    assert "20" in service.engine.session.tokenizer.decode(service.engine.prompts[-1].text)


@pytest.mark.parametrize("free", [True, False])
def test_streamed_calls_are_those_at_once(client, service, says, free):
    says(("Well: " if free else "") + f"{CALL}\n{CALL}")
    choice = "auto" if free else "required"
    about = {
        "model": "tiny",
        "messages": SAID,
        "tools": TOOLS,
        "max_tokens": 300,
        "tool_choice": choice,
    }
    whole = client.chat.completions.create(**about).choices[0].message
    assert allowed(service, service.engine.script)
    with client.chat.completions.stream(**about) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    pairs = zip(whole.tool_calls, streamed.message.tool_calls, strict=True)
    for one, other in pairs:
        assert one.function.name == other.function.name
        assert one.function.arguments == other.function.arguments
        assert other.function.parsed_arguments == {"city": "Paris", "unit": "c"}
    assert len(whole.tool_calls) == 2 and (streamed.message.content or None) == whole.content
    client.chat.completions.create(**about, parallel_tool_calls=False)
    assert not allowed(service, service.engine.script)


def test_a_named_tool_is_called(client, service, says):
    says(CALL)
    choice = {"type": "function", "function": {"name": "get_weather"}}
    found = client.chat.completions.create(
        model="tiny", messages=SAID, tools=TOOLS, tool_choice=choice, max_tokens=200
    )
    assert found.choices[0].message.tool_calls[0].function.name == "get_weather"
    assert allowed(service, CALL) and not allowed(service, "Hello")


def test_structured_output(client, service, says):
    class Place(pydantic.BaseModel):
        """A place."""

        city: str
        people: int
        tags: list[str]

    says('{"city": "Paris", "people": 3, "tags": ["a"]}')
    found = client.chat.completions.parse(
        model="tiny", messages=SAID, response_format=Place, max_tokens=200
    )
    assert found.choices[0].message.parsed == Place(city="Paris", people=3, tags=["a"])
    assert allowed(service, service.engine.script) and not allowed(service, '{"city": "Paris"}')


def test_responses(client, service, says):
    found = client.responses.create(model="tiny", input="Hi", max_output_tokens=4, store=False)
    assert found.output_text == "abcd" and found.usage.output_tokens == 4
    says(CALL)
    tool = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}
    given = {"model": "tiny", "input": SAID, "tools": [tool]}
    found = client.responses.create(**given)
    (item,) = found.output
    assert item.type == "function_call" and json.loads(item.arguments)["city"] == "Paris"
    result = {"type": "function_call_output", "call_id": item.call_id, "output": "20"}
    with client.responses.stream(**given) as stream:
        kinds = [one.type for one in stream]
        final = stream.get_final_response()
    assert final.output[0].arguments == item.arguments
    assert "response.function_call_arguments.delta" in kinds and kinds[-1] == "response.completed"
    says("Warm.")
    found = client.responses.create(**given | {"input": [*SAID, item, result]})
    assert found.output_text == "Warm." and found.status == "completed"


def test_embeddings(client, session):
    found = client.embeddings.create(model="tiny", input=["ab", "c"])
    wanted = session.embed(["ab", "c"])
    assert found.data[1].embedding == pytest.approx(wanted[1].tolist(), rel=1e-5)
    plain = client.embeddings.create(model="tiny", input="ab", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(wanted[0].tolist(), rel=1e-5)


def test_models(client):
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "jaxgen"


def test_errors(client, service):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as caught:
        create(model="other", messages=SAID)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="tiny", messages=SAID, n=0)
    assert caught.value.param == "n" and caught.value.request_id
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
        create(model="tiny", messages=SAID, extra_body={"temprature": 1})
    other = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        other.models.list()
    service.engine.size = 0
    with pytest.raises(openai.RateLimitError):
        create(model="tiny", messages=SAID)
    service.engine.size = 64


def test_our_own_settings_are_extra_fields(client, service):
    found = client.chat.completions.create(
        model="tiny", messages=SAID, max_tokens=2, extra_body={"top_k": 5, "min_p": 0.1}
    )
    settings = service.engine.prompts[-1].settings
    assert (settings.top_k, settings.min_p) == (5, 0.1) and found.choices


def test_a_time_out_gives_the_request_up(client, service):
    service.engine.gate.clear()
    before = len(service.engine.cancelled)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(model="tiny", messages=SAID)
    service.engine.gate.set()
    wait_for(lambda: len(service.engine.cancelled) > before)
