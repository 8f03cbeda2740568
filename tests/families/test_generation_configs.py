"""generation_config.json as published: each key is followed, or named, and none stops a folder."""

import json

import pytest

from jaxgen.pretrained.generation_config import GenerationConfig, read_generation_config

DRAW = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
BEAMS = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3}
# name -> (keys of the file, fields that follow from them, beginnings of what is named)
SHAPES: dict[str, tuple[dict, dict, tuple[str, ...]]] = {
    "nothing": ({}, {}, ()),
    "from the model config": ({"_from_model_config": True, "transformers_version": "4.3"}, {}, ()),
    "Llama 2 chat": (
        DRAW | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096},
        DRAW | {"bos_token_id": 1, "eos_token_id": (2,), "pad_token_id": 0, "max_length": 4096},
        (),
    ),
    "Llama 3": ({"eos_token_id": [8, 9]} | DRAW, {"eos_token_id": (8, 9)} | DRAW, ()),
    "Qwen 2.5": (
        {"do_sample": True, "repetition_penalty": 1.05, "top_k": 20, "top_p": 0.8},
        {"do_sample": True, "repetition_penalty": 1.05, "top_k": 20, "top_p": 0.8},
        (),
    ),
    "Qwen 1, with keys of its code": (
        {"chat_format": "chatml", "max_window_size": 6144, "do_sample": True},
        {"do_sample": True},
        ("chat_format=chatml", "max_window_size=6144"),
    ),
    "Gemma 3": (
        {"cache_implementation": "hybrid", "do_sample": True, "top_k": 64, "eos_token_id": [1, 6]},
        {"do_sample": True, "top_k": 64, "eos_token_id": (1, 6)},
        (),
    ),
    "Vicuna": ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6}, ()),
    "Marian": (
        {"bad_words_ids": [[9]], "forced_eos_token_id": 0, "num_beams": 4, "max_length": 512,
         "renormalize_logits": True, "decoder_start_token_id": 9},
        {"bad_words_ids": ((9,),), "forced_eos_token_id": (0,), "num_beams": 4, "max_length": 512,
         "renormalize_logits": True, "decoder_start_token_id": 9},
        (),
    ),
    "BART": (
        BEAMS | {"min_length": 56, "max_length": 142, "forced_bos_token_id": 0},
        BEAMS | {"min_length": 56, "max_length": 142, "forced_bos_token_id": (0,)},
        (),
    ),
    "T5": ({"decoder_start_token_id": 0, "pad_token_id": 0},
           {"decoder_start_token_id": 0, "pad_token_id": 0}, ()),
    "Whisper's lists": (
        {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3]},
        {"suppress_tokens": (1, 2), "begin_suppress_tokens": (3,)}, ()),
    "greedy, with numbers of a draw": (
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6}, ()),
    "greedy, temperature 0": (
        {"do_sample": False, "temperature": 0.0}, {"do_sample": False, "temperature": 0.0}, ()),
    "temperature 0 alone": (
        {"temperature": 0, "top_k": 1, "top_p": 0.001},
        {"temperature": 0.0, "top_k": 1, "top_p": 0.001}, ()),
    "top_k 0": ({"top_k": 0}, {}, ()),
    "top_k -1": ({"top_k": -1}, {}, ()),
    "top_k -2": ({"top_k": -2}, {}, ("top_k=-2 (it wants a whole number",)),
    "top_k 50.0": ({"top_k": 50.0}, {"top_k": 50}, ()),
    "top_p 0": ({"top_p": 0.0, "do_sample": False}, {"do_sample": False}, ("top_p=0.0 (",)),
    "top_p 1": ({"top_p": 1.0}, {}, ()),
    "top_p above 1": ({"top_p": 1.5}, {}, ("top_p=1.5 (",)),
    "a number as text": ({"temperature": "0.7"}, {}, ("temperature=0.7 (it wants a number",)),
    "temperature negative": ({"temperature": -1}, {}, ("temperature=-1 (",)),
    "temperature true": ({"temperature": True}, {}, ("temperature=True (",)),
    "temperature null": ({"temperature": None}, {}, ()),
    "min above max": (
        {"min_length": 10, "max_length": 5}, {"max_length": 5}, ("min_length=10 (it exceeds",)),
    "min above max, new ones": (
        {"min_new_tokens": 10, "max_new_tokens": 5}, {"max_new_tokens": 5},
        ("min_new_tokens=10 (it exceeds",)),
    "one bos in a list": ({"bos_token_id": [7]}, {"bos_token_id": 7}, ()),
    "two bos": ({"bos_token_id": [7, 8]}, {}, ("bos_token_id=[7, 8] (",)),
    "bos as text": ({"bos_token_id": "<s>"}, {}, ("bos_token_id=<s> (",)),
    "eos left open": ({"eos_token_id": None}, {}, ()),
    "pad -1": ({"pad_token_id": -1}, {}, ()),
    "no beams": ({"num_beams": 0}, {}, ("num_beams=0 (",)),
    "one beam": ({"num_beams": 1}, {"num_beams": 1}, ()),
    "early stopping, as never": ({"early_stopping": "never"}, {"early_stopping": "never"}, ()),
    "penalty 0": ({"repetition_penalty": 0}, {}, ("repetition_penalty=0 (",)),
    "penalty 1": ({"repetition_penalty": 1.0}, {}, ()),
    "n-gram 0": ({"no_repeat_ngram_size": 0}, {}, ()),
    "several texts": ({"num_return_sequences": 3}, {}, ("num_return_sequences=3",)),
    "one text": ({"num_return_sequences": 1}, {}, ()),
    "groups of beams": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, ()),
    "guidance off": ({"guidance_scale": 1}, {}, ()),
    "words that must occur": ({"force_words_ids": [[3]]}, {}, ("force_words_ids=[[3]]",)),
    "stop strings": ({"stop_strings": "END"}, {"stop_strings": ("END",)}, ()),
    "how it is computed": ({"use_cache": True, "output_scores": False, "use_mtp": False}, {}, ()),
    "nobody knows": ({"nobody_knows": 3}, {}, ("nobody_knows=3",)),
}  # fmt: skip


@pytest.mark.parametrize(("told", "fields", "named"), SHAPES.values(), ids=SHAPES)
def test_a_published_shape_is_followed_or_named(told, fields, named, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    found, dropped = read_generation_config(tmp_path)
    assert found == GenerationConfig(**fields)
    assert len(dropped) == len(named)
    assert all(text.startswith(begin) for text, begin in zip(dropped, named, strict=True))


@pytest.mark.parametrize(
    ("config", "labels", "problem", "named"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, ("no", "yes"), None, 0),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, (), None, 0),
        ({"id2label": {"1": "no", "2": "yes"}}, (), None, 1),
        ({"id2label": ["no", "yes"]}, (), None, 1),
        ({"problem_type": "regression"}, (), "regression", 0),
        ({"problem_type": "multi_label_classification"}, (), "multi_label_classification", 0),
        ({"problem_type": None}, (), None, 0),
        ({"problem_type": "ranking"}, (), None, 1),
    ],
)
def test_classes_are_read_from_config_json_or_named(config, labels, problem, named, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text("{}")
    found, dropped = read_generation_config(tmp_path)
    assert (found.labels, found.problem_type, len(dropped)) == (labels, problem, named)
