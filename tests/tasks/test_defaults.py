"""What a folder says of generation holds where nobody asks for anything else, and is told."""

import json
from types import SimpleNamespace

import pytest

from jaxgen.cli import app, start
from jaxgen.pretrained import generation_config
from jaxgen.pretrained.generation_config import KEYS, GenerationConfig, read_generation_config
from jaxgen.text import defaults
from jaxgen.text import session as sessions
from jaxgen.text.request import Generation

DRAW = GenerationConfig(
    do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1
)
SEARCH = GenerationConfig(
    num_beams=4, length_penalty=0.7, early_stopping=True, no_repeat_ngram_size=3,
    max_new_tokens=9, forced_eos_token_id=(2, 3),
)  # fmt: skip
IDS = GenerationConfig(
    suppress_tokens=(7, 8), forced_bos_token_id=(5,), begin_suppress_tokens=(6,),
    bad_words_ids=((1,), (2, 3)), min_new_tokens=2, max_length=12,
)  # fmt: skip

CASES = {
    "a draw": (DRAW, {}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95,
                          "repetition_penalty": 1.1}),
    "asked otherwise": (DRAW, {"temperature": 1.5, "top_k": 3},
                        {"temperature": 1.5, "top_k": 3, "top_p": 0.95,
                         "repetition_penalty": 1.1}),
    "the likeliest is asked for": (DRAW, {"temperature": 0.0},
                                   {"temperature": 0.0, "repetition_penalty": 1.1}),
    "a search": (SEARCH, {}, {"beams": 4, "length_penalty": 0.7, "early_stopping": True,
                              "no_repeat_ngram": 3, "max_new_tokens": 9, "force_last": (2, 3)}),
    "a drawn search": (GenerationConfig(num_beams=4, do_sample=True, top_k=5), {},
                       {"beams": 4, "do_sample": True, "top_k": 5}),
    "a draw instead of its search": (
        SEARCH, {"temperature": 0.5},
        {"temperature": 0.5, "no_repeat_ngram": 3, "max_new_tokens": 9, "force_last": (2, 3)}),
    "another length": (SEARCH, {"max_length": 30, "beams": 2},
                       {"max_length": 30, "beams": 2, "length_penalty": 0.7, "early_stopping": True,
                        "no_repeat_ngram": 3, "force_last": (2, 3)}),
    "the best": (GenerationConfig(do_sample=False, top_k=5), {}, {"do_sample": False}),
    "sampling asked for": (GenerationConfig(do_sample=False, temperature=0.6), {"do_sample": True},
                           {"do_sample": True, "temperature": 0.6}),
    "the best asked for": (DRAW, {"do_sample": False},
                           {"do_sample": False, "repetition_penalty": 1.1}),
    "several samples of the best": (GenerationConfig(do_sample=False), {"samples": 2},
                                    {"samples": 2}),
    "contrastive": (GenerationConfig(penalty_alpha=0.6, top_k=4, top_p=0.9), {},
                    {"contrastive": 0.6, "top_k": 4}),
    "ids": (IDS, {}, {"suppress_ids": (7, 8), "force_first": (5,), "suppress_first_ids": (6,),
                      "bad_words_ids": ("1", "2,3"), "min_new_tokens": 2, "max_length": 12}),
    "nothing": (GenerationConfig(), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("told", "asked", "wanted"), CASES.values(), ids=CASES)
def test_the_folder_fills_what_is_left_open(told, asked, wanted):
    found = defaults.fill(Generation(**asked), told, True)
    assert found == Generation(**wanted)
    shown = defaults.describe(Generation(**asked), told)
    for name in wanted.keys() - asked.keys():
        assert f"{name}={wanted[name]}" in shown
    assert bool(shown) == (wanted.keys() != asked.keys())


def test_a_text_that_goes_on_from_a_prompt_has_begun_already():
    assert defaults.fill(Generation(), IDS, False).force_first == ()


# A value of each key that changes what is generated, beside what it has no effect without.
VALUES = {
    "temperature": 0.3,
    "do_sample": False,
    "early_stopping": True,
    "renormalize_logits": True,
    "dola_layers": "low",
    "exponential_decay_length_penalty": (3, 1.5),
    "stop_strings": ("x",),
    "bad_words_ids": ((4, 5),),
    "labels": (),
}
BESIDE = {
    "length_penalty": {"num_beams": 2}, "early_stopping": {"num_beams": 2},
    "renormalize_logits": {"num_beams": 2},
    "num_beam_groups": {"num_beams": 4, "diversity_penalty": 0.5},
    "diversity_penalty": {"num_beams": 4, "num_beam_groups": 2},
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_generation_config_reaches_a_request(key):
    assert (key in defaults.SAME) != (key in defaults.OTHERS)
    kind = str(KEYS[key].type)
    value = VALUES.get(key, (3,) if "tuple" in kind else 0.5 if "float" in kind else 2)
    beside = BESIDE.get(key, {})
    before, after = (
        defaults.fill(Generation(), GenerationConfig(**given), True)
        for given in (beside, beside | {key: value})
    )
    assert (before != after) == (key not in generation_config.IDS), key


def test_the_verb_follows_the_folder_and_says_so(tmp_path, monkeypatch, capsys):
    seen = []

    class Heard:
        reads_sources = False

        def __init__(self, folder):
            self.model = SimpleNamespace(generation_config=read_generation_config(folder)[0])

        def stream(self, prompt, settings):
            seen.append(settings)
            yield "!"

    monkeypatch.setattr(sessions, "open_session", lambda folder, **_: Heard(folder))
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    (tmp_path / "config.json").write_text("{}")
    told = {"do_sample": True, "temperature": 0.6, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert app.main(["generate", str(tmp_path), "--prompt", "a", "--top-k", "3"]) == 0
    assert seen == [Generation(top_k=3)]
    assert "the folder says: temperature=0.6" in capsys.readouterr().err
    told |= {"temperature": -1}
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert app.main(["generate", str(tmp_path), "--prompt", "a"]) == 0
    assert seen[1] == Generation()
