"""What a folder says of generation holds where nobody asks for anything else, and is told."""

import json

import pytest

from jaxgen.cli import app, start
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import complete, defaults
from jaxgen.text.generation import Generation

DRAW = GenerationConfig(pick="draw", temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1)
SEARCH = GenerationConfig(
    beams=4, length_penalty=0.7, until="full", no_repeat_ngram=3, length=9, last=(2,)
)

CASES = {
    "a draw": (DRAW, {}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95,
                          "repetition_penalty": 1.1}),
    "asked otherwise": (DRAW, {"temperature": 1.5, "top_k": 3},
                        {"temperature": 1.5, "top_k": 3, "top_p": 0.95,
                         "repetition_penalty": 1.1}),
    "a search": (SEARCH, {}, {"beams": 4, "length_penalty": 0.7, "until": "full",
                              "no_repeat_ngram": 3, "max_new_tokens": 9, "force_last": 2}),
    "a draw instead of its search": (
        SEARCH, {"temperature": 0.5},
        {"temperature": 0.5, "no_repeat_ngram": 3, "max_new_tokens": 9, "force_last": 2}),
    "the best": (GenerationConfig(pick="best", top_k=5), {}, {"temperature": 0.0}),
    "ids": (GenerationConfig(never=(7, 8), first=(5,), min_new_tokens=2), {},
            {"suppress_ids": (7, 8), "force_first": 5, "min_new_tokens": 2}),
    "nothing": (GenerationConfig(), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("usage", "asked", "wanted"), CASES.values(), ids=CASES)
def test_the_folder_fills_what_is_left_open(usage, asked, wanted):
    found, told = defaults.fill(Generation(**asked), usage)
    assert found == Generation(**wanted)
    for name in wanted.keys() - asked.keys():
        assert f"{name}={wanted[name]}" in told
    assert bool(told) == (wanted.keys() != asked.keys())


def test_the_verb_follows_the_folder_and_says_so(tmp_path, monkeypatch, capsys):
    seen = []

    class Heard:
        def stream(self, prompt, settings):
            seen.append(settings)
            yield "!"

    monkeypatch.setattr(complete, "open_run", lambda folder, **_: Heard())
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    (tmp_path / "config.json").write_text("{}")
    told = {"do_sample": True, "temperature": 0.6, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert app.main(["generate", str(tmp_path), "--prompt", "a", "--top-k", "3"]) == 0
    assert seen == [Generation(temperature=0.6, top_k=3)]
    assert "the folder says: temperature=0.6" in capsys.readouterr().err
    told |= {"temperature": -1}
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert app.main(["generate", str(tmp_path), "--prompt", "a"]) == 4
    assert "temperature=-1 can't be" in capsys.readouterr().err
