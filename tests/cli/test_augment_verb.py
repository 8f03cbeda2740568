"""`jaxgen augment`: changed texts after each text, with its other fields; models draw new words."""

import json

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tokens
from jaxgen.cli import app, start
from jaxgen.data.augment.words import words_of
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.tasks import variants
from jaxgen.tokens.huggingface import HuggingFace

TEXTS = ["The red car drives home.", "A blue boat sails far away."]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "prepare_jax", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    rows = [{"id": n, "text": text, "label": "x"} for n, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")

    def call(*words):
        code = app.main(["augment", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_objects_keep_their_fields_and_the_text_comes_first(run, tmp_path):
    words = ("in.jsonl", "--kind", "delete", "--kind", "keyboard", "--copies", "3", "--rate", "0.3")
    code, out, _ = run(*words)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["id"] for row in rows] == [0] * 4 + [1] * 4
    assert [rows[0]["text"], rows[4]["text"]] == TEXTS and {row["label"] for row in rows} == {"x"}
    assert len({row["text"] for row in rows}) == 8
    assert all(len(words_of(row["text"])) <= len(words_of(TEXTS[row["id"]])) for row in rows)
    assert run(*words)[1] == out != run(*words, "--seed", "1")[1]
    code, _, err = run("in.txt", "--kind", "swap", "--output", "out.txt")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert code == 0 and "wrote" in err and lines[::2] == TEXTS
    assert sorted(words_of(lines[1])) == sorted(words_of(TEXTS[0]))


def test_variants_are_what_a_config_reads(run, tmp_path):
    from jaxgen.data.augment.settings import AugmentSettings
    from jaxgen.data.augment.texts import read_tools

    given = ("--kind", "ocr", "--copies", "4", "--variants", "--output", "variants.jsonl")
    assert run("in.jsonl", *given)[0] == 0
    own = AugmentSettings(kind="variants", file=tmp_path / "variants.jsonl")
    known = read_tools(own, list).variants
    assert [*known] == TEXTS and all(len(some) > 1 for some in known.values())


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("in.jsonl", "--kind", "masked"), 2, "--kind masked takes 1 --model, not 0"),
        (("in.jsonl", "--kind", "swap", "--model", "x"), 2, "--kind swap takes 0 --model, not 1"),
        (
            ("in.jsonl", "--kind", "swap", "--file", "x"),
            2,
            "--file x has no effect with --kind swap",
        ),
        (("in.txt", "--kind", "swap", "--field", "a"), 2, "--field a has no effect: in.txt is no"),
        (("in.jsonl", "--kind", "swap", "--field", "a"), 7, "in.jsonl:1 is no object with a"),
        (("in.jsonl", "--kind", "swap", "--rate", "0"), 2, "rate=0"),
        (
            ("in.txt", "--kind", "swap", "--variants", "--output", "a.txt"),
            2,
            "a.txt end with .jsonl",
        ),
        (("in.jsonl", "--kind", "counterfactual"), 2, "needs file: pairs of words"),
        (("none.jsonl", "--kind", "swap"), 2, "none.jsonl"),
    ],
)
def test_a_mistake_is_one_line(run, words, code, part):
    found, _, err = run(*words)
    assert found == code and part in err and err.count("\n") == 1


def wordpiece(names):
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    engine = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(names)}, unk_token="[UNK]")
    )
    engine.add_special_tokens(["[MASK]"])
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return HuggingFace(engine.to_str().encode())


def test_a_masked_model_draws_words_that_are_others():
    known = sorted({word.lower() for text in TEXTS for word in words_of(text)})
    names = ["[PAD]", "[UNK]", "[MASK]", ".", *known]
    config = jaxgen.ModelConfig(
        vocab_size=len(names), context=16, layers=1, d_model=16, heads=2, topology="encoder",
        head="mlm",
    )  # fmt: skip
    model = LoadedModel(config, random_params(config), wordpiece(names))
    made = variants.masked_variants(model, TEXTS, copies=3, rate=0.4, seed=0)
    assert made == variants.masked_variants(model, TEXTS, copies=3, rate=0.4, seed=0)
    assert [len(row) for row in made] == [3, 3]
    for text, row in zip(TEXTS, made, strict=True):
        for new in row:
            pairs = list(zip(words_of(text), words_of(new), strict=True))
            assert 1 <= sum(a != b for a, b in pairs) <= 2
            assert {b.lower() for _, b in pairs} <= {*known}
    assert made != variants.masked_variants(model, TEXTS, copies=3, rate=0.4, seed=1)


def test_models_rewrite_one_after_another():
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    config = jaxgen.ModelConfig(
        vocab_size=tokenizer.vocab_size, context=64, layers=1, d_model=16, heads=2,
        topology="encoder_decoder",
    )  # fmt: skip
    told = GenerationConfig(max_new_tokens=6)
    models = [
        LoadedModel(config, random_params(config, seed), tokenizer, 0, generation_config=told)
        for seed in range(2)
    ]
    one = variants.rewritten_variants(models, ["ab", "cd"], copies=2, seed=3, batch=2)
    assert [len(row) for row in one] == [2, 2] and one[0][0] != one[0][1]
    assert one == variants.rewritten_variants(models, ["ab", "cd"], copies=2, seed=3, batch=2)
    assert one != variants.rewritten_variants(models[:1], ["ab", "cd"], copies=2, seed=3, batch=2)
    assert np.all([isinstance(text, str) for row in one for text in row])
