"""A key that a GGUF file lacks is what llama.cpp takes for it, or it is refused by its name."""

import contextlib
import os

import numpy as np
import pytest
from random_params import random_params
from test_gguf_models import LATER, MODELS

import jaxgen
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.resolved import differences
from jaxgen.models.families.weights import table
from jaxgen.pretrained import gguf_names, gguf_write, hub_read, hub_write
from jaxgen.store import gguf

NAMES = {one.family: one.name for one in gguf_names.ARCHITECTURES}
# What llama.cpp computes with where the key is absent: llama-model.cpp, and src/models of it.
EVERYWHERE = {"attention.head_count_kv": 4, "attention.key_length": 8, "attention.value_length": 8}
EXPERTS = {"feed_forward_length": 32, "expert_feed_forward_length": 32}  # 64 for 2 experts
SCALES = {"embedding_scale": 1.0, "residual_scale": 1.0, "attention.scale": 8**-0.5}
BEHIND = {"leading_dense_block_count": 0, "expert_weights_scale": 1.0, "expert_group_count": 1,
          "expert_group_used_count": 1}  # fmt: skip
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
OPTIONAL = {
    "gpt2": {}, "bert": {"token_type_count": 2},
    "gemma2": {WINDOW: 4096, PATTERN: 2, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0},
    "gemma3": {WINDOW: 0, PATTERN: 6, "rope.freq_base_swa": 10000.0},
    "qwen2moe": EXPERTS | {"expert_shared_feed_forward_length": 64}, "qwen3moe": EXPERTS,
    "gpt-oss": {"feed_forward_length": 64, PATTERN: 2},
    "phi3": {WINDOW: 0}, "granite": SCALES, "granitemoe": SCALES,
    "stablelm": {"use_parallel_residual": False},
    "command-r": {"logit_scale": 1.0}, "cohere2": {PATTERN: 4},
    "exaone4": {WINDOW: 0, PATTERN: 4}, "glm4moe": BEHIND | {"expert_weights_norm": False},
    "deepseek2": BEHIND | {"attention.key_length_mla": 0, "attention.value_length_mla": 0,
                           "expert_weights_norm": False},
    "llama4": {"expert_shared_feed_forward_length": 64},
    "t5": {"decoder_block_count": 3}, "phimoe": {WINDOW: 0},
    "qwen3next": {"full_attention_interval": 4},
    # Of images alone, which our models don't see.
    "qwen35": {"full_attention_interval": 4, "rope.dimension_sections": 0},
    "qwen35moe": {"full_attention_interval": 4, "rope.dimension_sections": 0},
    "modern-bert": {WINDOW: 0, PATTERN: 3, "rope.freq_base_swa": 160000.0, "hidden_act": "gelu"},
}  # fmt: skip
NEEDED = {
    "gpt-oss": {WINDOW, "expert_feed_forward_length"}, "granite": {"logit_scale"},
    "granitemoe": {"logit_scale"}, "gptneox": {"use_parallel_residual"},
    "cohere2": {WINDOW, "logit_scale"}, "bloom": {"feed_forward_length"},
    "glm4moe": {"expert_shared_count", "expert_feed_forward_length"},
    "t5": {"attention.relative_buckets_count"}, "qwen35": {"ssm.inner_size", "ssm.state_size"},
    "llama4": {"expert_feed_forward_length", "interleave_moe_layer_step"},
    "deepseek2": {"expert_shared_count", "attention.kv_lora_rank", "rope.dimension_count"},
}  # fmt: skip
# What llama.cpp takes there, and what alone is known here.
LIMITED = {"attention.causal": (True, False), "attention.max_alibi_bias": (0.0, 8.0)}
# Families that share a name with others, by whether they have one of these keys.
SHARED = ("olmo3", "deepseek_v3", "mixtral")
ALWAYS = {"context_length", "block_count", "embedding_length", "attention.head_count"}


class Draft:
    """A file of zeros with the keys and tensors of a config's."""

    def __init__(self, config):
        architecture, settings = gguf_write.architecture_of(config)
        self.home = f"{architecture.name}."
        keys = gguf_write.write_keys(architecture, settings, config)
        self.metadata = {"general.architecture": architecture.name, **keys}
        shapes = table(architecture.named_family(), config)
        self.forms = {name: ("F32", theirs.shape) for name, theirs in shapes.items()}

    def write(self, path, more=None, less=None):
        """Write it with other values of some keys, and without one."""
        metadata = dict(self.metadata)
        for key, value in (more or {}).items():
            kind = np.uint32 if type(value) is int else np.float32
            metadata[self.home + key] = value if isinstance(value, bool | str) else kind(value)
        metadata.pop(less, None)
        gguf.write_gguf(path, metadata, self.forms, lambda n: np.zeros(self.forms[n][1], "f4"))
        return path


def small(name):
    family = FAMILIES[name.partition("-")[0]]
    config = family.read({"model_type": family.model_type, **(MODELS | LATER)[name]})
    return config.replace(head="none") if config.head == "pooled" else config


@pytest.mark.parametrize("name", [n for n in {**MODELS, **LATER} if n in NAMES and n not in SHARED])
def test_an_absent_key_is_what_llama_cpp_takes_or_it_is_named(tmp_path, name):
    config = small(name)
    draft = Draft(config)
    home, architecture = draft.home, draft.home[:-1]
    optional = EVERYWHERE | OPTIONAL.get(architecture, {})
    optional |= {"rope.freq_base": 10000.0}
    if architecture not in NEEDED or "rope.dimension_count" not in NEEDED[architecture]:
        optional["rope.dimension_count"] = config.H
    keys = {key.removeprefix(home) for key in draft.metadata if key.startswith(home)}
    assert keys - optional.keys() >= ALWAYS | NEEDED.get(architecture, set())
    for i, key in enumerate(sorted(keys - {"attention.q_lora_rank"})):
        lacking = draft.write(tmp_path / f"{i}.gguf", less=home + key)
        if key not in optional:
            with pytest.raises(CheckpointError) as error:
                hub_read.read_config(lacking)
            value, known = LIMITED.get(key, (None, None))
            taken = f"{home}{key}={value}, which llama.cpp takes where the key is absent,"
            limited = f"{taken} is not known here; known is {known}"
            wanted = limited if key in LIMITED else f"'{home}{key}' is missing"
            assert str(error.value) == f"{lacking}: {wanted}"
            continue
        told = draft.write(tmp_path / f"{i}-told.gguf", {key: optional[key]})
        read = [outcome(path) for path in (lacking, told)]
        assert read[0] == read[1], key


def outcome(path):
    """Return what a file's config is, or what is wrong with it."""
    try:
        return hub_read.read_config(path)[1]
    except CheckpointError as error:
        return str(error).removeprefix(str(path))


def test_a_value_that_only_llama_cpp_computes_by_is_refused(tmp_path):
    cases = {
        "granite": ({"rope.scaling.finetuned": False}, "finetuned=False is not known here"),
        "qwen2": ({"attention.causal": False}, "attention.causal=False is not known"),
        "llama": ({"rope.scaling.attn_factor": 1.5}, "attn_factor=1.5 with linear scaling"),
        "qwen3": ({"attention.value_length": 4}, "key_length=16 but attention.value_length=4"),
        "gemma": ({"final_logit_softcapping": 9.0}, "final_logit_softcapping=9.0 is not known"),
        "gemma2": ({PATTERN: True}, None),
        "gpt_oss": ({PATTERN: 3}, None),
    }
    for name, (more, message) in cases.items():
        path = Draft(small(name)).write(tmp_path / f"{name}.gguf", more)
        if message is None:
            pattern = hub_read.read_config(path)[1].pattern
            assert pattern == ("local",)
            continue
        with pytest.raises(CheckpointError, match=message):
            hub_read.read_config(path)


def test_a_scale_without_a_type_is_linear_and_none_is_none(tmp_path):
    draft = Draft(small("llama"))
    for i, (more, factor) in enumerate(
        [({"rope.scaling.factor": 4.0}, 4.0), ({"rope.scale_linear": 2.0}, 2.0)]
    ):
        scaling = hub_read.read_config(draft.write(tmp_path / f"{i}.gguf", more))[1].rope.scaling
        assert (scaling.kind, scaling.factor) == ("linear", factor)


@pytest.mark.parametrize("write", [gguf_write.architecture_of, hub_write.family_of])
def test_a_refusal_names_what_the_nearest_lacks_in_one_line(write):
    config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    for changes, lost in (
        ({"positions": "sinusoid"}, "has no positions=sinusoid"),
        ({"positions": "sinusoid", "norm": "rms", "feed": "relu", "biases": "none"}, "positions="),
    ):
        with pytest.raises(ConfigError, match=r"the nearest \(") as error:
            write(config.replace(**changes))
        assert lost in str(error.value) and len(str(error.value)) < 300


def test_tensors_have_the_shapes_of_the_converter(tmp_path):
    config = small("qwen2_moe")
    jaxgen.save(tmp_path / "m.gguf", config, random_params(config), layout="gguf")
    name = "blk.0.ffn_gate_inp_shexp.weight"
    contents = gguf.open_file(tmp_path / "m.gguf")
    assert contents.tensors[name].shape == (32,) and contents.tensors[name].dtype == "F32"
    # Older files of ours have one row there.
    forms = {n: (t.dtype, t.shape) for n, t in contents.tensors.items()}
    forms[name] = ("F32", (1, 32))
    metadata = {k: np.uint32(v) if type(v) is int else np.float32(v) if type(v) is float else v
                for k, v in contents.metadata.items()}  # fmt: skip
    tensors = contents.tensors
    gguf.write_gguf(
        *(tmp_path / "old.gguf", metadata, forms),
        lambda n: gguf.values(tensors[n], gguf.read_rows(tensors[n])).reshape(forms[n][1]),
    )
    (one, new), (other, old) = (jaxgen.load(tmp_path / f"{n}.gguf") for n in ("m", "old"))
    assert differences(one, other) == []
    assert np.array_equal(
        new["layers"]["experts"]["shared_gate"], old["layers"]["experts"]["shared_gate"]
    )


ODD = ("x", ["a", "b"], True, np.uint32(0), np.uint32(2**32 - 1), np.uint64(2**63), np.int32(-1),
       *map(np.float32, ("nan", "inf", -1.0, 1e30)), np.asarray([1, 2, 3], np.int32),
       np.asarray([True] * 4), np.asarray([], np.int32))  # fmt: skip
ANYWHERE = (WINDOW, PATTERN, "rope.freq_base_swa", "rope.scaling.factor", "nextn_predict_layers")


def test_no_value_of_any_key_ends_in_anything_but_one_line(tmp_path):
    names, rng = [*MODELS, *LATER], np.random.default_rng(0)
    nightly = os.environ.get("JAXGEN_NIGHTLY")
    if not nightly:
        names = ["gpt_oss", "stablelm", "llama4_text", "modernbert", *rng.choice(names, 3)]
    drafts = {name: Draft(small(name)) for name in names}
    lies = [
        (name, key, number)
        for name, draft in drafts.items()
        for key in sorted({*draft.metadata, *(draft.home + key for key in ANYWHERE)})
        for number in range(len(ODD))
    ]
    lies = lies if nightly else [lies[i] for i in rng.choice(len(lies), 150, replace=False)]
    # Depths that no pattern of layers repeats to, and a width that no heads have.
    lies += [("gpt_oss", "gpt-oss.block_count", n) for n in (3, 7)]
    lies.append(("stablelm", "stablelm.embedding_length", 0))
    for i, (name, key, number) in enumerate(lies):
        draft, path = drafts[name], tmp_path / f"{i}.gguf"
        metadata = draft.metadata | {key: ODD[number]}
        gguf.write_gguf(
            path, metadata, draft.forms, lambda n, d=draft: np.zeros(d.forms[n][1], "f4")
        )
        with contextlib.suppress(CheckpointError):
            hub_read.read_config(path)
        path.unlink()
