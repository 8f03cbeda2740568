"""Every setting that `jaxgen generate` takes reaches the request of every verb that generates."""

import dataclasses
import json
from functools import lru_cache

import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli import app, start
from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.text import batch_decoding, loaded_model
from jaxgen.text import session as sessions
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.request import NEEDS, Generation
from jaxgen.tokens.plain import Bytes

BASE = {"vocab_size": 262, "context": 64, "layers": 1, "d_model": 8, "heads": 2}
VALUES = {
    "overflow": "cut",
    "early_stopping": True,
    "do_sample": True,
    "renormalize": True,
    "dola": "low",
    "bias": ("a=1",),
    "top_p": 0.25,
    "policy": "policy.yaml",
}
BESIDE = {
    "groups": ("beams", "diversity"),
    "diversity": ("beams", "groups"),
    "guidance": ("negative_prompt",),
    "negative_prompt": ("guidance",),  # or debias
    "debias": ("negative_prompt", "max_new_tokens"),
}
VERBS = {
    "chat": ["chat", "one", "hello"],
    "translate": ["translate", "two", "hello"],
    "summarize": ["summarize", "two", "hello"],
    "answer": ["answer", "one", "who", "--context", "she"],
    "generate": ["generate", "one", "--prompt", "hello"],
    "a prompts file": ["generate", "one", "--prompts-file", "prompts.jsonl"],
}


class Marked(Bytes):
    """Bytes with a mark for chats."""

    def marks(self):
        return ("<|end|>",)

    def encode_marked(self, text, *, plain=()):
        return self.encode(text)


@pytest.fixture(scope="module")
def models():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    @lru_cache
    def model(name, topology):
        config = jaxgen.ModelConfig(**BASE, topology=topology)
        return loaded_model.LoadedModel(config, random_params(config), Marked(), start=256)

    return {"one": model("one", "decoder"), "two": model("two", "encoder_decoder")}, template


@pytest.fixture
def home(models, monkeypatch, tmp_path):
    loaded, template = models

    def open_model(folder, **_):
        return loaded[folder.name]

    for module in (loaded_model, sessions):
        monkeypatch.setattr(module, "open_model", open_model)
    chat = ChatTemplate(template, {})
    whole = sessions.Session.chat_ids
    monkeypatch.setattr(sessions.Session, "chat_ids", lambda self, m, _=None: whole(self, m, chat))
    monkeypatch.setattr(sessions.Session, "_draft", lambda self, folder: folder)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in loaded:
        (tmp_path / name).mkdir()
    (tmp_path / "policy.yaml").write_text("rules: [{name: x, words: [xyzzy], action: mask}]")
    return tmp_path


def given_with(name):
    """A value of the setting, and of those without which it has no effect."""
    partners = BESIDE.get(name, tuple(other for one, other in NEEDS if one == name))
    given = {}
    for one in (name, *partners):
        hint = Generation.__dataclass_fields__[one].type
        value = VALUES.get(one, 0.5 if "float" in hint else 2 if "int" in hint else "x y")
        given[one] = (value,) if "tuple" in hint and not isinstance(value, tuple) else value
    return given


def together():
    """Every setting once, as few requests as can hold them: all that go with each other."""
    requests = []
    for field in dataclasses.fields(Generation):
        given = given_with(field.name)
        for one in requests:
            try:
                Generation(**one | given)
            except ConfigError:
                continue
            one |= given
            break
        else:
            requests.append(given)
    return requests


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_reaches_the_request(verb, home, monkeypatch, capsys):
    seen = []

    def complete(group):
        seen.extend(group.requests)
        return [[Completion("text", Reason.STOP, [65], 1, [-1.0])] for _ in group.requests]

    monkeypatch.setattr(batch_decoding, "complete", complete)
    requests = together()
    assert {name for one in requests for name in one} == set(vars(Generation()))
    for given in requests:
        if verb == "answer":  # whose results have no tokens to tell of
            given.pop("top_logprobs", None)
        if verb == "chat":  # whose beginning is not cut off
            given.pop("overflow", None)
        words = [*VERBS[verb], "--output", "out.jsonl"]
        if verb == "a prompts file":
            (home / "prompts.jsonl").write_text(json.dumps({"prompt": "hello"} | given) + "\n")
        else:
            for name, value in given.items():
                shown = value[0] if isinstance(value, tuple) else value
                words += [
                    f"--{name.replace('_', '-')}",
                    *[str(shown)] * (name not in ("do_sample", "renormalize")),
                ]
        seen.clear()
        assert app.main(words) == 0, (words, capsys.readouterr().err)
        for name, value in given.items():
            assert getattr(seen[0].settings, name) == value, (words, seen[0].settings)
        assert len(seen) == Generation(**given).draws_each


def test_the_results_of_a_text_and_what_is_known_of_their_tokens_are_written(home, monkeypatch):
    words = ["translate", "two", "hello", "--output", "out.jsonl", "--max-new-tokens", "3"]
    assert app.main([*words, "--beams", "2", "--n-best", "2"]) == 0
    (row,) = map(json.loads, (home / "out.jsonl").read_text().splitlines())
    assert len(row["result"]) == 2
    assert app.main([*words, "--temperature", "0", "--top-logprobs", "2"]) == 0
    (row,) = map(json.loads, (home / "out.jsonl").read_text().splitlines())
    assert len(row["result"]["tokens"][0]["top"]) == 2
    assert app.main([*words[:3], "--top-logprobs", "2"]) == 2
    assert app.main([*words, "--choices", "ja", "--choices", "nein"]) == 0
    (row,) = map(json.loads, (home / "out.jsonl").read_text().splitlines())
    assert row["result"] in ("ja", "nein")
