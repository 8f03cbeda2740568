"""The verbs of the tasks: texts in, a line a text out, and one line for what can't be done."""

import json

import jax
import pytest

import jaxgen
from jaxgen.cli import app
from jaxgen.tokens.plain import Bytes

BASE = {"vocab_size": 262, "context": 64, "layers": 1, "d_model": 16, "heads": 2}
MODELS = {
    "two": {"topology": "encoder_decoder"},
    "bert": {"topology": "encoder", "head": "mlm"},
    "gpt": {},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    for name, fields in MODELS.items():
        config = jaxgen.ModelConfig(**BASE, **fields)
        params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
        jaxgen.save(home / name, config, params, tokenizer=Bytes())
    return home


@pytest.fixture(autouse=True)
def cache(models, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(models / "cache"))


@pytest.mark.parametrize(
    ("verb", "model", "options"),
    [("translate", "two", ["--beams", "2", "--max-new-tokens", "4"]), ("fill-mask", "bert", []),
     ("embed", "bert", []), ("score", "gpt", [])],
)  # fmt: skip
def test_a_verb_writes_one_result_a_line(models, tmp_path, verb, model, options):
    texts = tmp_path / "texts.txt"
    texts.write_text("one <mask>\nanother <mask> text\n")
    out = tmp_path / "out.jsonl"
    words = [verb, str(models / model), "--input", str(texts), "--output", str(out), *options]
    assert app.main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == texts.read_text().splitlines()
    assert all("result" in row for row in rows)


@pytest.mark.parametrize(
    ("words", "part"),
    [(["translate", "gpt", "a"], "needs an encoder_decoder"),
     (["score", "bert", "a"], "score needs topology=decoder"),
     (["score", "gpt", "a", "--input", "b"], "exclude each other"),
     (["score", "gpt", "--input", "none.txt"], "none.txt"),
     (["embed", "bert", "a", "--output", "none/out"], "--output none/out"),
     (["embed", "bert", "a" * 70], "text 0 has 72 tokens, more than context=64"),
     (["fill-mask", "bert", "<mask>", "--overflow", "cut"], "--overflow cut has no effect"),
     (["translate", "two", "a", "--beams", "0"], "--beams=0"),
     (["answer", "bert", "who"], "--context is missing"),
     (["answer", "bert", "who", "--context", "a"], "answer needs head=lm, but head=mlm"),
     (["chat", "gpt", "hello", "--top-p", "2"], "--top-p=2.0 must be greater than 0")],
)  # fmt: skip
def test_what_can_not_be_done_is_one_line(models, monkeypatch, capsys, words, part):
    monkeypatch.chdir(models)
    assert app.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert part in lines[-1] and lines[-1].startswith("jaxgen: error")
