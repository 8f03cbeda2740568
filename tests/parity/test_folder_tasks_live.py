"""What a folder says of a task is what transformers' generate does with these keys and the prefix.

The pipelines of transformers 4 put a task's keys over those of the folder, and its prefix before
each text.
"""

import json

import numpy as np
import published
import pytest
from test_published_folders_live import rewrite, saved, with_words

from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.text.request import Generation

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ENDS = {"eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": None}
MODELS = {
    "t5": ("T5ForConditionalGeneration", published.T5 | ENDS | {"vocab_size": 9}),
    "bart": (
        "BartForConditionalGeneration",
        published.BART | ENDS | {"vocab_size": 9, "forced_eos_token_id": 3},
    ),
}
SUMMARY = {"early_stopping": True, "length_penalty": 2.0, "max_length": 12, "min_length": 5,
           "no_repeat_ngram_size": 2, "num_beams": 4, "prefix": "a b d: "}  # fmt: skip
TASKS = {
    "summarization": SUMMARY,
    "translation_en_to_de": {"max_length": 9, "num_beams": 3, "prefix": "d d "},
    "translation_en_to_fr": {"max_length": 9, "num_beams": 1, "early_stopping": False},
}
TEXTS = ["a c b", "d", "b b c a d a"]


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    architecture, sizes = MODELS[request.param]
    model = saved(folder, architecture, sizes)
    with_words(folder)
    rewrite(folder, {"task_specific_params": TASKS, "prefix": "c "})
    general = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.3} | ENDS
    if request.param == "bart":
        general["forced_eos_token_id"] = 3
    (folder / "generation_config.json").write_text(json.dumps(general))
    model.generation_config = transformers.GenerationConfig(**general)
    return folder, model


@pytest.fixture(scope="module")
def plain(both):
    return tasks.rewrite(open_model(both[0]), TEXTS)


def generated(folder, model, text, **keys):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text).input_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **keys)
    return tokenizer.decode(out[0], skip_special_tokens=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_of_the_folder_is_followed(both, plain, task):
    folder, model = both
    found = tasks.rewrite(tasks.for_task(open_model(folder), task), TEXTS)
    keys = dict(TASKS[task])
    prefix = keys.pop("prefix", "c ")
    if keys["num_beams"] == 1:
        del keys["early_stopping"]
    assert found == [generated(folder, model, prefix + text, **keys) for text in TEXTS]
    assert found != plain or "bart" in folder.name


def test_without_a_task_the_prefix_of_all_texts_counts_and_what_is_asked_wins(both):
    folder, model = both
    loaded = open_model(folder)
    asked = Generation(beams=2, max_length=10)
    keys = {"num_beams": 2, "max_length": 10}
    wanted = [generated(folder, model, f"c {text}", **keys) for text in TEXTS]
    assert tasks.rewrite(loaded, TEXTS, asked) == wanted
    plain = [generated(folder, model, text, **keys) for text in TEXTS]
    assert tasks.rewrite(loaded, TEXTS, asked, prefix="") == plain
    assert plain != wanted or "bart" in folder.name
    summary = tasks.for_task(loaded, "summarization")
    keys = {k: v for k, v in SUMMARY.items() if k != "prefix"} | {"num_beams": 2}
    wanted = [generated(folder, model, f"b d {text}", **keys) for text in TEXTS]
    assert tasks.rewrite(summary, TEXTS, Generation(beams=2), prefix="b d ") == wanted


@pytest.mark.parametrize("penalty", [1.0, 0.4])
def test_renormalised_beams_are_those_of_transformers(both, penalty):
    folder, model = both
    keys = {"num_beams": 3, "max_length": 9, "repetition_penalty": 2.5, "length_penalty": penalty}
    general = json.loads((folder / "generation_config.json").read_bytes())
    try:
        both_ways = []
        for on in (True, False):
            told = general | keys | {"renormalize_logits": on, "no_repeat_ngram_size": 2}
            (folder / "generation_config.json").write_text(json.dumps(told))
            (found,) = tasks.rewrites(open_model(folder), ["a c b"], Generation(n_best=3, beams=3))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            ids = torch.tensor([tokenizer("c a c b").input_ids])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), num_return_sequences=3,
                renormalize_logits=on, no_repeat_ngram_size=2, return_dict_in_generate=True,
                output_scores=True, **keys,
            )  # fmt: skip
            scores = [one.score for one in found]
            np.testing.assert_allclose(scores, out.sequences_scores.numpy(), atol=1e-4, rtol=0)
            texts = tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
            assert [one.text for one in found] == texts
            both_ways.append(scores)
        assert not np.allclose(*both_ways, atol=1e-2)
    finally:
        (folder / "generation_config.json").write_text(json.dumps(general))
