"""A tiny model behind a real server."""

import pytest
from fake_engine import FakeEngine, MarkedBytes
from loopback import serving
from random_params import random_params
from sessions import session_on

import jaxgen
from jaxgen.pretrained.chat_template import ChatTemplate, write_chat_template
from jaxgen.serve.engine import Engine

CONFIG = jaxgen.ModelConfig(vocab_size=259, context=2048, layers=1, d_model=16, heads=2,
                            positions="rope")  # fmt: skip
TEMPLATE = (
    '{% if tools %}Call as <tool_call>\n{"name": NAME, "arguments": {}}\n</tool_call>'
    "{{ tools | tojson }}{% endif %}{% for message in messages %}"
    "[{{ message.role }}]{{ message.content }}{{ message.tool_calls or '' }}{% endfor %}>"
)


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """A model of random weights with a chat template."""
    home = tmp_path_factory.mktemp("served") / "tiny"
    home.mkdir()
    write_chat_template(home, ChatTemplate(TEMPLATE, {}))
    return session_on(CONFIG, random_params(CONFIG), MarkedBytes(), home=home)


@pytest.fixture(scope="session")
def server(session):
    """A server of the tiny model, by the engine."""
    engine = Engine(session, slots=2, context=64, chunk=4, piece=32, prefix_tokens=0)
    with serving({"tiny": engine}) as found:
        yield found


@pytest.fixture(scope="session")
def canned(session):
    """The same, whose texts are no model's."""
    with serving({"tiny": FakeEngine(session)}) as found:
        yield found


@pytest.fixture
def send(server):
    """Sends requests to it."""
    return server.send
