"""The verbs of the tasks: texts in, a line a text out, and one line for what can't be done."""

import json

import jax
import pytest

import jaxgen
from jaxgen.cli import app, texts
from jaxgen.errors import DataError
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
    asked = ["one <mask>", "a <mask>\x0bb\x0cc\x1cd", "<mask>\x85e\u2028f\u2029g", "another <mask>"]
    source = tmp_path / "texts.txt"
    source.write_bytes("\r\n".join(asked[:2]).encode() + b"\n" + "\n".join(asked[2:]).encode())
    words = [verb, str(models / model), "--input", str(source), *options, "--output"]
    assert app.main([*words, str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["text"] for row in rows] == asked
    assert all("result" in row for row in rows)
    assert app.main([*words, str(tmp_path / "out.txt")]) == 0
    assert (tmp_path / "out.txt").read_bytes().count(b"\n") == len(asked)


def test_a_newline_in_a_result_is_escaped_refused_or_kept_in_json(models, tmp_path, capsys):
    def run(**job):
        results = ["two\nlines", "a return\rhere", "a\u2028b"]
        work = lambda model, texts, progress: results  # noqa: E731
        texts.run(str(models / "gpt"), ["1", "2", "3"], texts.Job(**job), work, str)
        return results

    run()
    assert capsys.readouterr().out == "two\\nlines\na return\\rhere\na\u2028b\n"
    with pytest.raises(DataError, match=r"result 1 has a newline: 'two.*--newlines escape"):
        run(newlines="refuse")
    kept = run(output=str(tmp_path / "out.jsonl"), newlines="refuse")
    rows = (tmp_path / "out.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(row)["result"] for row in rows] == kept


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
