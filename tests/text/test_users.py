"""Many users of one model: a batch mixes their adapters, and one of them can be forgotten."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import settings, tree
from jaxgen.adapters import bank as banks
from jaxgen.adapters.adapter import abstract, attach, merge, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained.peft_write import write_adapter
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.text.users import Users, forget, names, preferred, read_user, with_system
from jaxgen.tokens.plain import Bytes

CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=64, layers=2, d_model=16, heads=4, kv_heads=2, feed="swiglu",
    norm="rms", positions="rope", biases="none", init_std=0.4,
)  # fmt: skip
LENGTH = 6
GREEDY = Generation(temperature=0.0, max_new_tokens=LENGTH)


def adapter_of(number, rank=2, **more):
    given = {"kind": "lora", **more}
    if given["kind"] != "ia3":
        given |= {"rank": rank, "alpha": 4.0}
    adapter = plan(settings.build(AdapterSettings, given), CONFIG)
    rng = np.random.default_rng(number)
    draw = lambda path, x: jnp.asarray(0.5 * rng.normal(size=x.shape), "float32")  # noqa: E731
    return replace(adapter, params=tree.map_paths(draw, abstract(adapter, CONFIG)))


def add(home, name, number, about=None, **more):
    (home / name / "adapter").mkdir(parents=True)
    write_adapter(home / name / "adapter", adapter_of(number, **more), FAMILIES["llama"], CONFIG)
    if about is not None:
        (home / name / "user.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("users")
    jaxgen.save(home / "base", CONFIG, random_params(CONFIG), tokenizer=Bytes())
    for number in range(8):
        rank = 1 + number % 3
        targets = ["all-linear"] if number % 2 else ["*/q", "*/v"]
        add(home / "all", f"user{number}", number, rank=rank, targets=targets)
    return home


@pytest.fixture(scope="module")
def session(home):
    return jaxgen.open(home / "base", users=home / "all", capacity=8)


def prompts(numbers):
    return [Prompt(f"text {n}", GREEDY, user=None if n is None else f"user{n}") for n in numbers]


def texts(session, numbers):
    return [one.tokens for (one,) in session.run(prompts(numbers))]


def test_a_batch_of_users_gives_each_what_it_gives_alone_and_what_a_merged_model_gives(
    home, session
):
    together = texts(session, range(8))
    assert len({tuple(tokens) for tokens in together}) == 8
    assert together == [texts(session, [n])[0] for n in range(8)]
    for number, tokens in enumerate(together):
        config, params = jaxgen.load(home / "base", adapter=home / "all" / f"user{number}/adapter")
        prompt = jnp.asarray([Bytes().encode(f"text {number}")])
        around = [session.model.around[0]]
        ids = jnp.asarray([[*around[0], *prompt[0].tolist()]])
        found = jaxgen.generate(
            merge(params, config), config, ids, jax.random.key(0), length=LENGTH
        )
        assert found[0, : len(tokens)].tolist() == tokens, number


def test_a_batch_mixes_kinds_of_adapters(home, session, tmp_path):
    given = {
        "lora": {"targets": ["*/q"], "rank": 2},
        "dora": {"kind": "dora", "rank": 3, "targets": ["*/q", "*/up"]},
        "ia3": {"kind": "ia3", "targets": ["*/k", "*/down"]},
    }
    tokens, params = jnp.asarray([[1, 2, 3]]), jaxgen.load(home / "base")[1]
    for name, more in given.items():
        add(tmp_path, name, 1, **more)
    users = Users(tmp_path, session.model)
    around = users.params(session.params, [None, *given])
    found = jaxgen.apply(around, CONFIG, jnp.repeat(tokens, 4, axis=0)).logits
    wanted = [
        jaxgen.apply(attach(params, adapter_of(1, **more), CONFIG), CONFIG, tokens).logits[0]
        for more in given.values()
    ]
    np.testing.assert_allclose(found[1:], np.stack(wanted), atol=1e-4)
    assert np.abs(np.diff(found, axis=0)).max(axis=(1, 2)).min() > 0.1
    for name in given:
        slot = users.slots[name]
        assert not banks.is_empty(users.bank, CONFIG, slot)
        users.drop(name)
        assert banks.is_empty(users.bank, CONFIG, slot)


def test_rows_without_a_user_are_those_of_the_model_itself(home, session):
    mixed = texts(session, [0, None, 3])
    plain = jaxgen.open(home / "base")
    asked = plain.run([Prompt("text None", GREEDY)])
    assert mixed[1] == asked[0][0].tokens
    assert [mixed[0], mixed[2]] == texts(session, [0, 3])
    with pytest.raises(ConfigError, match="the session knows no users"):
        plain.generate("a", user="user0")


def test_nothing_is_compiled_when_users_come_and_go(home, tmp_path, compiled):
    shutil.copytree(home / "all", tmp_path / "some")
    for number in range(4, 8):
        shutil.rmtree(tmp_path / "some" / f"user{number}")
    session = jaxgen.open(home / "base", users=tmp_path / "some", capacity=3)
    texts(session, [0, 1])
    compiled.clear()
    first = texts(session, [2, 3])  # one of the two before makes room
    assert len(session.users.slots) == 3 and "user1" in session.users.slots
    session.users.forget("user3")
    again = adapter_of(3, rank=1)
    (tmp_path / "some" / "user9" / "adapter").mkdir(parents=True)
    write_adapter(tmp_path / "some" / "user9" / "adapter", again, FAMILIES["llama"], CONFIG)
    texts(session, [9, 2])
    assert texts(session, [2, 0])[0] == first[0]
    # Zeros are looked at by programs of their own, once.
    assert not {"jit(_begin)", "jit(_more)"} & set(compiled)
    count = len(compiled)
    session.users.drop("user9")
    texts(session, [1, 0])
    assert len(compiled) == count


def test_a_bank_holds_a_thousand_adapters_and_a_forgotten_slot_holds_zeros():
    bank = banks.empty(CONFIG, 1000, 8, dtype="bfloat16")
    adapter = adapter_of(1, rank=8)
    for slot in (1, 500, 1000):
        bank = banks.write(bank, CONFIG, slot, adapter, "one")
    params = random_params(CONFIG)
    slots = np.asarray([0, 1000, 7])
    tokens = jnp.asarray([[1, 2, 3]] * 3)
    logits = jaxgen.apply(banks.around(params, bank, slots, CONFIG), CONFIG, tokens).logits
    plain = jaxgen.apply(params, CONFIG, tokens).logits
    rounded = replace(adapter, params=jax.tree.map(lambda x: x.astype("bfloat16"), adapter.params))
    tuned = jaxgen.apply(attach(params, rounded, CONFIG), CONFIG, tokens).logits
    np.testing.assert_allclose(logits[jnp.asarray([0, 2])], plain[:2], atol=1e-5)
    np.testing.assert_allclose(logits[1], tuned[1], atol=0.05)
    assert not banks.is_empty(bank, CONFIG, 1000) and banks.is_empty(bank, CONFIG, 7)
    bank = banks.write(bank, CONFIG, 1000, None, "one")
    assert banks.is_empty(bank, CONFIG, 1000)


def test_parameters_are_not_copied_for_a_batch():
    bank, params = banks.empty(CONFIG, 2, 2), random_params(CONFIG)
    around = banks.around(params, bank, np.asarray([0, 1]), CONFIG)
    one, other = params["layers"]["attn"]["q"], around["layers"]["attn"]["q"].weight
    assert one.unsafe_buffer_pointer() == other.unsafe_buffer_pointer()


def test_preferences_hold_where_a_request_says_nothing(tmp_path):
    about = {
        "system": "You are brief.",
        "settings": {"temperature": 0.3, "top_k": 5},
        "bias": {"a": 2},
    }
    add(tmp_path, "ann", 1, about)
    user = read_user(tmp_path, "ann")
    found = preferred(user, Generation(temperature=0.9, bias=("b=1",)))
    assert (found.temperature, found.top_k, found.bias) == (0.9, 5, ("a=2", "b=1"))
    chat = [{"role": "user", "content": "hi"}]
    assert with_system(user, chat)[0] == {"role": "system", "content": "You are brief."}
    own = [{"role": "system", "content": "Other."}, *chat]
    assert with_system(user, own) is own
    assert names(tmp_path) == ["ann"]


# fmt: off
DAMAGED = [
    ({"sytem": "x"}, r"unknown key 'sytem' \(did you mean 'system'\?\)"),
    ({"settings": {"temprature": 1}}, "unknown key 'settings.temprature'"),
    ({"settings": {"temperature": -1}}, "temperature=-1"),
    ({"system": 3}, "system is a text"),
]
# fmt: on


@pytest.mark.parametrize(("about", "said"), DAMAGED)
def test_a_damaged_user_is_named(about, said, tmp_path):
    add(tmp_path, "ann", 1, about)
    with pytest.raises(CheckpointError, match=said):
        read_user(tmp_path, "ann")


def test_what_cannot_be_is_refused(home, session, tmp_path):
    with pytest.raises(ConfigError, match=r"user user12: no such user \(did you mean 'user"):
        session.generate("a", user="user12")
    with pytest.raises(ConfigError, match=r"user '\.\./base' is no name"):
        session.generate("a", user="../base")
    small = jaxgen.open(home / "base", users=home / "all", capacity=1)
    with pytest.raises(ConfigError, match="2 users in one batch are more than capacity=1"):
        texts(small, [0, 1])
    add(tmp_path, "wide", 1, rank=7)
    users = Users(tmp_path, session.model, rank=2)
    with pytest.raises(ConfigError, match="user wide has rank 7, more than the rank=2"):
        users.params(session.params, ["wide"])
    add(tmp_path, "whole", 1, targets=["*/q"], save=["final_norm/scale"])
    users = Users(tmp_path, session.model, rank=8)
    with pytest.raises(ConfigError, match="user whole has parameters saved whole, which rows of"):
        users.params(session.params, ["whole"])
    add(tmp_path, "dora", 1, kind="dora")
    with pytest.raises(ConfigError, match="user dora has kind=dora, but the bank was opened with"):
        users.params(session.params, ["dora"])
    biased = CONFIG.replace(biases="all")
    ia3 = plan(settings.build(AdapterSettings, {"kind": "ia3", "targets": ["*/k"]}), biased)
    with pytest.raises(ConfigError, match="ann has kind=ia3 at layers/attn/k, whose bias it"):
        banks.write(banks.empty(biased, 1, 2, kinds=["ia3"]), biased, 1, ia3, "ann")
    users = Users(tmp_path, session.model, rank=8, targets=["*/q"])
    with pytest.raises(ConfigError, match="which the bank has no room for"):
        users.params(session.params, ["wide"])


def test_forget_removes_a_user_and_proves_it(home, session, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "all" / "user1", tmp_path / "all" / "user1")
    shutil.copytree(home / "all" / "user2", tmp_path / "all" / "user2")
    users = Users(tmp_path / "all", session.model, capacity=2)
    users.params(session.params, ["user1"])
    slot = users.slots["user1"]
    assert not banks.is_empty(users.bank, CONFIG, slot)
    removed = users.forget("user1")
    assert {one.path.name for one in removed} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert all(len(one.sha256) == 64 and one.size > 0 for one in removed)
    assert not (tmp_path / "all" / "user1").exists() and "user1" not in users.slots
    assert banks.is_empty(users.bank, CONFIG, slot)
    with pytest.raises(ConfigError, match="user user1: no such user"):
        forget(tmp_path / "all", "user1")
    copy = tmp_path / "cache" / "copy.bin"
    copy.parent.mkdir()
    shutil.copy(tmp_path / "all" / "user2" / "adapter" / "adapter_model.safetensors", copy)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    monkeypatch.setenv("JAXGEN_CACHE", str(copy.parent))
    words = ["forget", "user2", "--users", str(tmp_path / "all")]
    assert app.main(words) == 4
    shown = capsys.readouterr()
    assert f"{copy} holds the same bytes" in shown.err and "2 files" in shown.out
    copy.unlink()
    shutil.copytree(home / "all" / "user2", tmp_path / "all" / "user2")
    assert app.main(words) == 0
    said = capsys.readouterr().out
    assert "sha256 " in said and "2 files" in said


def test_forgetting_leaves_users_who_have_the_same_and_finds_copies_elsewhere(tmp_path):
    for name in ("ann", "bob", "eve"):
        add(tmp_path, name, 1, {"system": "You are brief."})
    (tmp_path / "bob" / "user.json").unlink()
    (tmp_path / "bob" / "user.json").hardlink_to(tmp_path / "ann" / "user.json")
    assert len(forget(tmp_path, "ann")) == 3
    assert read_user(tmp_path, "bob").system == "You are brief."
    shutil.copytree(tmp_path / "eve", tmp_path / "old" / "eve")
    with pytest.raises(CheckpointError, match=r"old/eve/.* holds the same bytes as a file of it"):
        forget(tmp_path, "eve")
    assert names(tmp_path) == ["bob", "old"]
