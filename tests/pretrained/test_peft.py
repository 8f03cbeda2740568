"""Adapters of PEFT: written and read again bit for bit, and what of their config is refused."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import settings, tree
from jaxgen.adapters.adapter import abstract, attach, merge, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained.peft_read import base_of, read_adapter, read_settings
from jaxgen.pretrained.peft_write import write_adapter
from jaxgen.store import safetensors

SIZES = {"vocab_size": 13, "context": 16, "layers": 3, "d_model": 8, "heads": 4}
GATED = {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none", "kv_heads": 2}
MODELS = {
    "gpt2": SIZES,
    "llama": SIZES | GATED | {"output": "untied"},
    "phi3": SIZES | GATED | {"output": "untied"},
    "t5": SIZES | {"topology": "encoder_decoder", "norm": "rms", "positions": "relative",
                   "biases": "none", "scores": {"query_scalar": 1.0}, "output_scale": "root"},
}  # fmt: skip
ASKED = {
    "lora": {"kind": "lora", "rank": 3, "alpha": 5.0},
    "rslora": {"kind": "rslora", "rank": 2, "alpha_pattern": {"*/o": 3.0}},
    "dora": {"kind": "dora", "rank": 2, "targets": ["all-linear"]},
    "ia3": {"kind": "ia3", "targets": ["*/v", "*/k", "*/q", "*/down"]},
    "some": {"kind": "lora", "rank": 4, "layers": [1], "rank_pattern": {"*/o": 2}},
    "whole": {"kind": "lora", "rank": 2, "targets": ["*/o"], "save": ["embed/tokens"]},
}


def made(family, asked):
    """A config, and an adapter for it with random numbers, or zeros where a layer has none."""
    config = settings.build(jaxgen.ModelConfig, MODELS[family])
    adapter = plan(settings.build(AdapterSettings, asked), config)
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        values = rng.normal(size=shape.shape).astype(np.float32)
        home, _, part = path.rpartition("/")
        if part in ("a", "b") and home in adapter.ranks:
            on = np.arange(int(np.max(adapter.ranks[home]))) < adapter.ranks[home][..., None]
            ends = (1,) * (values.ndim - 2)
            values *= on.reshape(
                (len(on), *ends, -1) if part == "a" else (len(on), on.shape[1], *ends)
            )
        return values

    return config, replace(
        adapter, params=tree.map_paths(leaf, abstract(adapter, config)), base="org/base"
    )


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("family", MODELS)
def test_what_is_written_is_read_again(family, kind, tmp_path):
    config, adapter = made(family, ASKED[kind])
    write_adapter(tmp_path, adapter, FAMILIES[family], config)
    again = read_adapter(tmp_path, FAMILIES[family], config)
    assert (again.kind, again.base, again.scaling) == (adapter.kind, "org/base", adapter.scaling)
    assert base_of(tmp_path) == "org/base"
    zeros = tree.map_paths(lambda path, x: jnp.ones(x.shape, x.dtype), jaxgen.abstract(config))
    one, other = (tree.flatten(merge(attach(zeros, x, config), config)) for x in (adapter, again))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], atol=2e-5, err_msg=path)
    # Once read, an adapter is written and read bit for bit.
    (tmp_path / "twice").mkdir()
    write_adapter(tmp_path / "twice", again, FAMILIES[family], config)
    files = [
        safetensors.open_file(f / "adapter_model.safetensors")
        for f in (tmp_path, tmp_path / "twice")
    ]
    assert files[0].keys() == files[1].keys()
    for name, tensor in files[0].items():
        np.testing.assert_array_equal(tensor.read(), files[1][name].read(), err_msg=name)
    assert read_settings(tmp_path) == read_settings(tmp_path / "twice")
    third = read_adapter(tmp_path / "twice", FAMILIES[family], config)
    for path, leaf in tree.flatten(again.params).items():
        np.testing.assert_array_equal(leaf, tree.flatten(third.params)[path], err_msg=path)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_virtual_tokens_are_written_and_read_again(family, kind, tmp_path):
    config, adapter = made(family, {"kind": kind, "tokens": 3})
    write_adapter(tmp_path, adapter, FAMILIES[family], config)
    again = read_adapter(tmp_path, FAMILIES[family], config)
    assert (again.kind, again.targets, again.base) == (kind, adapter.targets, "org/base")
    for path, leaf in tree.flatten(adapter.params).items():
        np.testing.assert_array_equal(leaf, tree.flatten(again.params)[path], err_msg=path)
    for more, said in (
        ({"num_virtual_tokens": 4}, r"prompt_embeddings is \[3, .* adapter of another base"),
        ({"num_virtual_tokens": None}, "of num_virtual_tokens=None alone"),
        ({"lora_alpha": 2}, "lora_alpha=2 is not followed here"),
    ):
        changed(tmp_path, more)
        with pytest.raises(CheckpointError, match=said):
            read_adapter(tmp_path, FAMILIES[family], config)
    scaled = settings.build(jaxgen.ModelConfig, MODELS[family] | {"embed": {"scale": "root"}})
    if kind == "prompt":
        with pytest.raises(ConfigError, match=r"embed\.scale=root: whether a prompt is scaled"):
            write_adapter(tmp_path, adapter, FAMILIES[family], scaled)


# As published adapters of several years have it, in our own words.
PUBLISHED = {
    "old": {"bias": "none", "fan_in_fan_out": False, "merge_weights": False, "enable_lora": None},
    "new": {"alora_invocation_tokens": None, "arrow_config": None, "corda_config": None,
            "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None,
            "layer_replication": None, "loftq_config": {}, "lora_bias": False,
            "megatron_config": None, "megatron_core": "megatron.core",
            "peft_version": "0.19.1", "qalora_group_size": 16,
            "target_parameters": None, "trainable_token_indices": None, "use_qalora": False,
            "revision": "abc", "task_type": "CAUSAL_LM", "inference_mode": True},
}  # fmt: skip
# fmt: off
REFUSED = [
    ({"peft_type": "VERA"}, "peft_type='VERA' is not read; LORA, IA3, PROMPT_TUNING"),
    ({"lora_alhpa": 3}, r"lora_alhpa=3 is not followed here \(did you mean 'lora_alpha'\?\)"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices=.* is not followed here"),
    ({"layer_replication": [[0, 2]]}, "layer_replication=.* is not followed"),
    ({"lora_bias": True}, "lora_bias=True is not followed"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' belongs to a base with the first"),
    ({"r": "8"}, "r='8' is no number"),
    ({"r": 7}, "has rank 3, but adapter_config.json says 7"),
    ({"target_modules": ["q_proj", "lm_head", "up_proj"]}, "has no tensors for model.layers.0.mlp"),
]
# fmt: on


@pytest.fixture
def folder(tmp_path):
    _, adapter = made("llama", ASKED["lora"] | {"targets": ["*/q", "*/o"]})
    config = settings.build(jaxgen.ModelConfig, MODELS["llama"])
    write_adapter(tmp_path, adapter, FAMILIES["llama"], config)
    return tmp_path


def changed(folder, more):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.mark.parametrize("about", PUBLISHED)
def test_configs_as_published_are_read(about, folder):
    changed(folder, PUBLISHED[about])
    config = settings.build(jaxgen.ModelConfig, MODELS["llama"])
    assert read_adapter(folder, FAMILIES["llama"], config).targets


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_a_key_that_would_change_the_result_is_refused_by_name(more, said, folder):
    changed(folder, more)
    config = settings.build(jaxgen.ModelConfig, MODELS["llama"])
    with pytest.raises(CheckpointError, match=said):
        read_adapter(folder, FAMILIES["llama"], config)


def test_an_adapter_of_another_base_is_refused(folder):
    for change in ({"d_model": 16}, {"layers": 2}):
        config = settings.build(jaxgen.ModelConfig, MODELS["llama"] | change)
        with pytest.raises(CheckpointError, match="an adapter of another base"):
            read_adapter(folder, FAMILIES["llama"], config)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    config = settings.build(jaxgen.ModelConfig, MODELS["llama"])
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is pickle"):
        read_adapter(folder, FAMILIES["llama"], config)


def test_what_one_module_of_theirs_cannot_say_is_refused(tmp_path):
    config, adapter = made("gpt2", {"kind": "dora", "targets": ["*/q"]})
    with pytest.raises(ConfigError, match="c_attn is one module in PEFT"):
        write_adapter(tmp_path, adapter, FAMILIES["gpt2"], config)
