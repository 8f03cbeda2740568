"""A folder's task_specific_params and prefix: read, merged, kept by `save`, told by the verb."""

import json

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import ConfigError
from jaxgen.pretrained.assets import copy_assets
from jaxgen.pretrained.generation_config import (
    GenerationConfig,
    for_task,
    read_generation_config,
)
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.text.request import Generation
from jaxgen.tokens.plain import Bytes

PARAMS = {
    "summarization": {"max_length": 9, "num_beams": 2, "no_repeat_ngram_size": 0, "prefix": "tl "},
    "translation_en_to_de": {"max_new_tokens": 3, "early_stopping": None},
    "translation_en_to_fr": {"num_return_sequences": 3, "colour": "red"},
}
GENERAL = {"no_repeat_ngram_size": 3, "length_penalty": 0.5, "max_length": 30}


@pytest.fixture
def folder(tmp_path):
    config = jaxgen.ModelConfig(
        vocab_size=259, context=32, layers=1, d_model=8, heads=2, topology="encoder_decoder",
        norm="rms", positions="relative", biases="none", query_scalar=1.0, feed="relu",
        output_scale="root",
    )  # fmt: skip
    hub = tmp_path / "hub"
    jaxgen.save(hub, config, random_params(config), tokenizer=Bytes(), layout="hf", family="t5")
    more = {"task_specific_params": PARAMS, "prefix": "read ", "decoder_start_token_id": 0}
    path = hub / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | more))
    (hub / "generation_config.json").write_text(json.dumps(GENERAL))
    return hub


def test_the_keys_of_a_task_win_over_the_folders_and_may_turn_them_off(folder):
    told, dropped = read_generation_config(folder)
    assert told.prefix == "read " and not dropped
    summary, dropped = for_task(told, "summarization")
    assert (summary.prefix, summary.max_length, summary.num_beams) == ("tl ", 9, 2)
    assert summary.no_repeat_ngram_size is None and summary.length_penalty == 0.5 and not dropped
    german, _ = for_task(told, "translation_en_to_de")
    assert (german.prefix, german.max_new_tokens, german.max_length) == ("read ", 3, 30)
    assert for_task(told, "translation_en_to_fr")[1] == ("colour=red", "num_return_sequences=3")


def test_what_makes_no_task_is_named(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"prefix": 3, "task_specific_params": {"summarization": [1]}})
    )
    told, odd = read_generation_config(tmp_path)
    assert told == GenerationConfig()
    assert [one.partition("=")[0] for one in odd] == ["prefix", "task_specific_params"]


@pytest.mark.parametrize("layout", ["jaxgen", "hf"])
def test_saved_folders_keep_tasks_and_runs_that_begin_from_one_do_not(folder, layout, tmp_path):
    model = open_model(folder)
    about = model.generation_config
    jaxgen.save(tmp_path / "new", model.config, model.params, tokenizer=model.tokenizer,
                generation_config=about, layout=layout)  # fmt: skip
    again = read_generation_config(tmp_path / "new")[0]
    assert (again.prefix, again.task_specific_params) == (about.prefix, about.task_specific_params)
    (tmp_path / "run").mkdir()
    copy_assets(folder, tmp_path / "run")
    run = read_generation_config(tmp_path / "run")[0]
    assert run.length_penalty == 0.5 and run.prefix is None and not run.task_specific_params


def test_a_prefix_comes_before_texts_that_lack_it(folder):
    model, asked = open_model(folder), Generation(temperature=0.0, max_new_tokens=4)
    after = tasks.rewrites(model, ["ab", "read ab"], asked, detail=True)
    assert [one[0].prompt_tokens for one in after] == [len(model.ids("read ab"))] * 2
    (bare,) = tasks.rewrites(model, ["ab"], asked, prefix="")
    assert bare[0].prompt_tokens == len(model.ids("ab"))
    with pytest.raises(ConfigError, match="text 0 is empty"):
        tasks.rewrite(model, [""], asked)


def test_one_beam_of_a_folder_is_the_likeliest_text(folder):
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 1, "max_length": 9}))
    model = open_model(folder)
    likeliest = tasks.rewrite(model, ["abc"], Generation(temperature=0.0))
    assert tasks.rewrite(model, ["abc"]) == likeliest


def test_the_verb_takes_its_own_task_and_says_so_in_a_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    assert app.main(["summarize", str(folder), "ab"]) == 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "folder says" in one]
    wanted = "task=summarization, prefix='tl ', max_length=9, beams=2, length_penalty=0.5"
    assert line == f"the folder says: {wanted}"
    words = ["translate", str(folder), "ab", "--prefix", "x", "--max-new-tokens", "2"]
    assert app.main(words) == 0
    told = capsys.readouterr().err
    assert "choose one with --task" in told and "prefix=" not in told
    assert app.main([*words, "--task", "translation_en_to_d"]) == 2
    assert "did you mean 'translation_en_to_de'" in capsys.readouterr().err


def test_a_batch_renormalises_for_all_or_none():
    from jaxgen.text.processors import ChainContext, chain_of

    none = np.zeros((2, 1), np.int32)
    batch = ChainContext(Bytes(), 259, none, none[:, 0] + 4, none, none[:, 0] + 1)
    on, off = Generation(beams=2, renormalize=True), Generation(beams=2, renormalize=False)
    assert len(chain_of([on, on], batch).processors) == 1 + len(
        chain_of([off, off], batch).processors
    )
    with pytest.raises(ConfigError, match="renormalize"):
        chain_of([on, off], batch)
    with pytest.raises(ConfigError, match="has no effect without beams"):
        Generation(renormalize=True)
