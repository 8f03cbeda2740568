"""Requests name users, whose adapters decode side by side; users come and go while it serves."""

import json
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from fake_engine import FakeEngine, MarkedBytes
from loopback import serving
from random_params import random_params
from test_engine import Ear, is_answer, settled

import jaxgen
from jaxgen import errors, settings, tree
from jaxgen.adapters.adapter import abstract, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained.chat_template import ChatTemplate, write_chat_template
from jaxgen.pretrained.peft_write import write_adapter
from jaxgen.serve.engine import Engine
from jaxgen.serve.served import Served
from jaxgen.serve.tickets import Delta, Failed
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.tokens.plain import Bytes

CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=64, layers=1, d_model=16, heads=2, norm="rms", feed="swiglu",
    positions="rope", biases="none", init_std=0.4,
)  # fmt: skip
GREEDY = Generation(temperature=0.0, max_new_tokens=6)
BEGINNING = "a beginning that they share: "


def add(home, name, number, **about):
    made = plan(settings.build(AdapterSettings, {"kind": "lora", "rank": 2}), CONFIG)
    rng = np.random.default_rng(number)
    draw = lambda path, x: jnp.asarray(0.5 * rng.normal(size=x.shape), "float32")  # noqa: E731
    adapter = replace(made, params=tree.map_paths(draw, abstract(made, CONFIG)))
    (home / name / "adapter").mkdir(parents=True)
    write_adapter(home / name / "adapter", adapter, FAMILIES["llama"], CONFIG)
    (home / name / "user.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("served")
    jaxgen.save(tmp_path / "base", CONFIG, random_params(CONFIG), tokenizer=Bytes())
    write_chat_template(
        tmp_path / "base", ChatTemplate("{% for m in messages %}{{ m.content }}|{% endfor %}", {})
    )
    users = tmp_path / "users"
    add(users, "ann", 1, settings={"top_k": 3}, bias={"a": 1.0})
    add(users, "bob", 2)
    add(users, "finn", 3)
    (users / "carl").mkdir()
    (users / "carl/user.json").write_text('{"system": "Be Carl.", "settings": {"min_p": 0.2}}')
    return jaxgen.open(tmp_path / "base", users=users, capacity=5)


@pytest.fixture(scope="module")
def engine(session):
    with Engine(session, slots=2, chunk=4, piece=16, prefix_tokens=256) as one:
        one.warm_up()
        yield one


def ask(engine, *users, **changes):
    """Return (prompts, what came of each) of users who ask at once."""
    asked = [Prompt(BEGINNING, replace(GREEDY, **changes), user=user) for user in users]
    ears = [Ear() for _ in asked]
    for prompt, ear in zip(asked, ears, strict=True):
        engine.submit(prompt, ear)
    return asked, [ear.ended()[0] for ear in ears]


def test_users_share_steps_and_nothing_is_compiled_when_they_come_and_go(engine, session):
    home = session.users.home
    said = set()
    for users in (("ann", None, "finn", "carl"), ("finn", "ann", None, "ann")):
        asked, rows = ask(engine, *users)
        assert all(map(is_answer, rows, [one for (one,) in session.run(asked)]))
        said |= {tuple(row[-1].completion.tokens) for row in rows}
    assert len(said) == 3  # carl has no adapter, so he gets what nobody gets
    add(home, "dan", 4)
    shutil.rmtree(home / "finn")
    with pytest.raises(errors.ConfigError, match="finn: no such user"):
        engine.submit(Prompt("a", GREEDY, user="finn"), print)
    assert not Served("m", engine).has_user("finn")
    asked, rows = ask(engine, "dan", "ann")
    assert all(map(is_answer, rows, [one for (one,) in session.run(asked)]))
    assert "finn" not in session.users.slots  # nor does his adapter stay in memory
    shutil.rmtree(home / "dan")
    add(home, "dan", 5)  # another adapter: what the first has read is not its prefix
    engine.run(lambda session: session.users.drop("dan")).result()
    asked, (row,) = ask(engine, "dan")
    assert row[0].cached_tokens == 0 and is_answer(row, session.run(asked)[0][0])
    assert settled(engine).compilations == 0


def test_a_user_who_is_removed_while_a_text_is_written_ends_it_alone(engine, session):
    ears = {"ann": Ear(), "bob": Ear()}

    def forget(event):
        if isinstance(event, Delta) and "bob" in session.users.slots:
            session.users.drop("bob")
        ears["bob"](event)

    for user, listener in (("ann", ears["ann"]), ("bob", forget)):
        long = Prompt(BEGINNING, replace(GREEDY, max_new_tokens=20), user=user)
        engine.submit(long, listener)
    ((*_, last),) = ears["bob"].ended()
    assert isinstance(last, Failed) and "user bob has been removed" in str(last.error)
    long = Prompt(BEGINNING, replace(GREEDY, max_new_tokens=20), user="ann")
    assert is_answer(ears["ann"].ended()[0], session.run([long])[0][0])


def test_slots_need_room_for_the_adapters_of_their_users(session):
    with pytest.raises(errors.ConfigError, match="capacity=17"):
        Engine(session, slots=8)


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "seed": 1}
REFUSED = [
    ("/v1/chat/completions", CHAT | {"user": "eve"}, 400, "user"),
    ("/v1/chat/completions", CHAT | {"user": "../base"}, 400, "user"),
    ("/v1/chat/completions", CHAT | {"user": "bob", "model": "m/ann"}, 400, "user"),
    ("/v1/chat/completions", CHAT | {"model": "m/eve"}, 404, "model"),
    ("/score", {"model": "m", "input": "a", "user": "ann"}, 400, "user"),
]


def test_a_request_names_its_user_by_user_or_by_model(session):
    model = replace(session.model, tokenizer=MarkedBytes())
    session = replace(session, model=model)
    engine = FakeEngine(session)
    with serving({"m": engine}) as server:
        for given in ({"user": "carl"}, {"model": "m/carl"}, {"model": "m/carl", "user": "carl"}):
            assert server.send("/v1/chat/completions", CHAT | given).status == 200
            prompt = engine.prompts[-1]
            assert prompt.user == "carl"
            assert session.tokenizer.decode(list(prompt.text)).startswith("Be Carl.|Hi|")
        assert server.send("/v1/completions", {"model": "m/ann", "prompt": "a"}).status == 200
        assert engine.prompts[-1].user == "ann"
        assert server.send("/v1/models/m/ann").status == 200
        for path, body, status, param in REFUSED:
            found = server.send(path, body)
            assert (found.status, found.json["error"]["param"]) == (status, param), found.text
            assert "ann" not in found.json["error"]["message"].replace("m/ann", "")
