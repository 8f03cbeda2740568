"""Folders of models that see as well: their language model is read, the rest is named and left."""

import json

import numpy as np
import pytest
from random_params import random_params
from safetensors.numpy import load_file, save_file

import jaxgen
from jaxgen import tree
from jaxgen.errors import CheckpointError

CONFIG = jaxgen.ModelConfig(
    vocab_size=32, context=16, layers=1, d_model=8, heads=2, kv_heads=1, d_ff=12, norm="rms",
    positions="rope", feed="swiglu", biases="none", output="untied", head_dim=4,
)  # fmt: skip
SEES = {"model.layers.0.weight": np.ones((2, 2), np.float32)}
# model_type of the whole, of its language model, how names begin there, a part besides.
KINDS = {
    "mistral3": ("mistral", {"": "language_model."}, "vision_tower"),
    "mistral3 of transformers 5": (
        "mistral", {"lm_head.": "lm_head.", "model.": "model.language_model."}, "model.vision_tower"
    ),
}  # fmt: skip


def folder_of(home, kind, **more):
    """Write a model as the language model of one with more parts; return its parameters."""
    text, renamed, part = KINDS[kind]
    params = random_params(CONFIG)
    jaxgen.save(home, CONFIG, params, layout="hf", family=text)
    tensors = load_file(home / "model.safetensors")
    begins = {name: next(b for b in renamed if name.startswith(b)) for name in tensors}
    inside = {renamed[b] + name.removeprefix(b): tensors[name] for name, b in begins.items()}
    inside |= {f"{part}.{name}": array for name, array in SEES.items()}
    save_file(inside, home / "model.safetensors", metadata={"format": "pt"})
    own = json.loads((home / "config.json").read_text())
    whole = {"model_type": kind.split()[0], "architectures": ["AnyForConditionalGeneration"]}
    whole |= {"text_config": own, "tie_word_embeddings": own.pop("tie_word_embeddings")}
    (home / "config.json").write_text(json.dumps(whole | {"vision_config": {"depth": 3}} | more))
    return params


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_is_read_and_the_parts_left_out_are_named(kind, tmp_path):
    wanted = tree.flatten(folder_of(tmp_path / "hub", kind))
    with pytest.warns(UserWarning, match="language model is read; left out: vision_tower$"):
        config, params = jaxgen.load(tmp_path / "hub")
    assert (config.output, config.layers, config.V) == ("untied", 1, 32)
    found = tree.flatten(params)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], leaf) for path, leaf in wanted.items())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"text_config": None}, "text_config=None is not the config of a language model"),
        ({"text_config": {"model_type": "lama"}}, "text_config: model_type='lama' is no known"),
        ({"architectures": ["AnyForSequenceClassification"]}, "known are ...ForConditionalGener"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights"),
    ],
)
def test_a_whole_without_a_language_model_that_is_known_is_refused(more, words, tmp_path):
    folder_of(tmp_path / "hub", "mistral3", **more)
    with pytest.raises(CheckpointError, match=words):
        jaxgen.load(tmp_path / "hub")
