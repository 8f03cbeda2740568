"""A GGUF file is the model that the Hugging Face folder it was made of is."""

import json

import gguf_files
import jax
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained.pooling import read_pooling

SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip
LLAMA = SIZES | {"num_key_value_heads": 2, "rope_theta": 10000.0, "head_dim": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
GEMMA = LLAMA | {"head_dim": 16}
GEMMA2 = GEMMA | {"query_pre_attn_scalar": 16, "sliding_window": 8}
GPT2 = {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 64}
T5 = {"vocab_size": 32, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 4, "num_layers": 3,
      "num_decoder_layers": 2, "n_positions": 64, "relative_attention_num_buckets": 16}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu"}
MODELS = {
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-3.1": LLAMA | {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "llama-3.2": LLAMA | {"rope_scaling": LLAMA3 | {"factor": 32.0}, "rope_theta": 500000.0},
    "llama-other-bounds": LLAMA
    | {"hidden_size": 64, "head_dim": 16, "rope_theta": 5000.0}
    | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 400}},
    "llama-linear": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama-yarn": LLAMA
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 16, "tie_word_embeddings": True},
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2 | {"sliding_window_pattern": 6, "num_hidden_layers": 7},
    "gpt2": GPT2,
    "bert": SIZES | {"type_vocab_size": 2, "architectures": ["BertModel"]},
    "t5": T5,
    "t5-untied": T5 | GATED | {"tie_word_embeddings": False},
    "t5-encoder": T5 | GATED | {"architectures": ["T5EncoderModel"]},
    "umt5": T5 | GATED,
    "umt5-encoder": T5 | {"architectures": ["UMT5EncoderModel"]},
}
# Read alone: llama.cpp opens no other sizes than those of Google's.
READ = {
    "gemma3n_text": GEMMA
    | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"sliding_window": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
    | {"vocab_size_per_layer_input": 30, "laurel_rank": 4, "altup_num_inputs": 3}
    | {"activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0], "rope_theta": 1e6},
}

NAMED = LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FACTORS = {"embedding_multiplier": 3.0, "logits_scaling": 0.5, "residual_multiplier": 0.4,
           "attention_multiplier": 0.3}  # fmt: skip
BEHIND = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
          "n_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
          "n_group": 1, "topk_group": 1, "num_hidden_layers": 3}  # fmt: skip
LATENT = LLAMA | BEHIND | {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
                           "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": 8}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        "mscale": 0.7, "mscale_all_dim": 0.7}  # fmt: skip
WHOLE = {name: YARN[name] for name in ("rope_type", "factor", "original_max_position_embeddings")}
GPT_OSS = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 32}  # fmt: skip
MSCALES = LONG | {"short_mscale": 1.25, "long_mscale": 1.25}
DELTA = LLAMA | {"head_dim": 16, "num_hidden_layers": 4, "linear_num_key_heads": 2,
                 "linear_num_value_heads": 4, "linear_key_head_dim": 16,
                 "linear_value_head_dim": 16}  # fmt: skip
# Families that are written and read again alone, and opened by llama.cpp.
LATER = {
    "qwen2_moe": NAMED | {"shared_expert_intermediate_size": 64, "norm_topk_prob": False},
    "qwen3_moe": NAMED | {"norm_topk_prob": True},
    "gpt_oss": GPT_OSS | {"rope_scaling": {"rope_type": "default"}},
    "gpt_oss-yarn": GPT_OSS | {"rope_scaling": WHOLE},
    "olmo2": LLAMA,
    "olmoe": NAMED | {"num_key_value_heads": 4},
    "phi3": LLAMA | {"partial_rotary_factor": 0.5},
    "phi3-window": LLAMA | {"sliding_window": 16},
    "granite": LLAMA | FACTORS,
    "granitemoe": LLAMA | FACTORS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "smollm3": LLAMA | {"num_hidden_layers": 4},
    "starcoder2": LLAMA,
    "stablelm": LLAMA | {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "stablelm-parallel": LLAMA | {"partial_rotary_factor": 1.0, "use_parallel_residual": True},
    "gpt_neox": SIZES | {"rotary_pct": 0.5, "rotary_emb_base": 500.0},
    "gpt_neox-sequential": SIZES | {"rotary_pct": 1.0, "use_parallel_residual": False},
    "mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": LLAMA | {"rope_theta": 500000.0, "sliding_window": 16, "num_hidden_layers": 4},
    "phi": LLAMA | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "falcon": SIZES | {"ffn_hidden_size": 128},
    "falcon-grouped": SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-one-norm": SIZES
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "bloom": {"vocab_size": 32, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 32, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "cohere": LLAMA | {"logit_scale": 0.5},
    "cohere2": LLAMA | {"logit_scale": 0.5, "sliding_window": 16, "num_hidden_layers": 4},
    "exaone4": LLAMA | {"sliding_window": None},
    "seed_oss": LLAMA | {"head_dim": 16},
    "deepseek_v2": LATENT | {"q_lora_rank": 24, "topk_method": "greedy"},
    "deepseek_v2-yarn": LATENT | {"q_lora_rank": 24, "topk_method": "greedy", "rope_scaling": YARN},
    "deepseek_v3": LATENT
    | {"q_lora_rank": 24, "norm_topk_prob": True, "n_group": 2, "topk_group": 1},
    "modernbert": SIZES
    | {"architectures": ["ModernBertModel"], "num_hidden_layers": 4, "local_attention": 6},
    "llama4_text": LLAMA
    | {"num_local_experts": 4, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2}
    | {"num_hidden_layers": 4},
    "glm4_moe": LLAMA | BEHIND | {"use_qk_norm": True, "attention_bias": True},
    "phi3-long": LLAMA | {"rope_scaling": LONG, "max_position_embeddings": 64},
    "phimoe": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe-long": LLAMA
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True}
    | {"rope_scaling": MSCALES, "lm_head_bias": True, "max_position_embeddings": 64},
    "qwen3_next": NAMED | DELTA | {"shared_expert_intermediate_size": 64, "norm_topk_prob": True},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": NAMED | DELTA | {"shared_expert_intermediate_size": 64},
}


def exported(home, name):
    """Write a random model of a family's config as a Hugging Face folder."""
    family = FAMILIES[name.partition("-")[0]]
    config = family.read({"model_type": family.model_type, **(MODELS | READ)[name]})
    config = config.replace(head="none") if config.head == "pooled" else config
    jaxgen.save(home, config, random_params(config), layout="hf", family=family.model_type)
    return home


def assert_equal(one, other):
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


@pytest.mark.parametrize("name", [*MODELS, *READ])
def test_a_gguf_file_is_the_model_of_its_folder(tmp_path, name):
    folder = exported(tmp_path / "hub", name)
    path = gguf_files.from_folder(folder, tmp_path / "model.gguf")
    wanted, found = jaxgen.load(folder), jaxgen.load(path)
    assert found[0] == wanted[0]
    close = 1e-7 if name.startswith("gemma") else 0  # whose 1 + w is rounded in the file
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 0, close), found[1], wanted[1])


@pytest.mark.parametrize(("form", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"),
                                             ("Q8_0", "float32"), ("Q4_0", "float32")])  # fmt: skip
def test_the_dtype_is_that_of_the_matrices_or_float32(tmp_path, form, dtype):
    folder = exported(tmp_path / "hub", "llama")
    path = gguf_files.from_folder(folder, tmp_path / "model.gguf", form)
    config, params = jaxgen.load(path)
    assert config.param_dtype == dtype == str(params["embed"]["tokens"].dtype)
    wanted = jaxgen.load(folder)[1]
    error = np.abs(np.asarray(params["embed"]["tokens"], np.float32) - wanted["embed"]["tokens"])
    assert error.max() < 0.02
    again = jaxgen.load(path, dtype="bfloat16")
    assert again[0].param_dtype == "bfloat16"


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path):
    folder = exported(tmp_path / "hub", "llama")
    (tmp_path / "models").mkdir()
    path = gguf_files.from_folder(folder, tmp_path / "models" / "a.gguf")
    assert_equal(jaxgen.load(tmp_path / "models"), jaxgen.load(path))
    (tmp_path / "models" / "b.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"2 .gguf files; name one of them: a.gguf, b.gguf"):
        jaxgen.load(tmp_path / "models")


LIES = {
    "unknown architecture": ({"general.architecture": "lama"}, r"'lama' is not known \(did you"),
    "architecture a number": ({"general.architecture": np.uint32(3)}, "general.architecture=3 is"),
    "no layers": ({"llama.block_count": np.uint32(0)}, "llama.block_count=0 must be"),
    "a layer more": ({"llama.block_count": np.uint32(3)}, "9 missing: blk.2.attn_k.weight"),
    "2^32 - 1 layers": ({"llama.block_count": np.uint32(2**32 - 1)},
                    "llama.block_count=4294967295 is more than the 1000"),
    "layers a text": ({"llama.block_count": "two"}, "llama.block_count='two' is no number"),
    "heads that don't divide": ({"llama.attention.head_count": np.uint32(5)}, "head_count=5"),
    "no heads": ({"llama.attention.head_count": np.uint32(0)}, "llama.attention.head_count=0"),
    "heads a list": ({"llama.attention.head_count": np.asarray([4, 2], np.int32)}, r"\[4, 2\]"),
    "other width": ({"llama.embedding_length": np.uint32(48)}, "of another shape: "),
    "other feed": ({"llama.feed_forward_length": np.uint32(63)}, "of another shape: "),
    "epsilon NaN": ({"llama.attention.layer_norm_rms_epsilon": np.float32("nan")}, "epsilon=nan"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": np.float32(0)}, "epsilon=0.0"),
    "base negative": ({"llama.rope.freq_base": np.float32(-1)}, "rope"),
    "base a text": ({"llama.rope.freq_base": "1e4"}, "'1e4'"),
    "unknown scaling": ({"llama.rope.scaling.type": "magic"}, "rope.scaling.type='magic'"),
    "factor 0": ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": np.float32(0)},
                 "rope.scaling.factor=0.0 is no number above 0"),
    "part of a head": ({"llama.rope.dimension_count": np.uint32(4)}, "partial_rotary_factor=0.5"),
    "key that computes": ({"llama.logit_scale": np.float32(2)}, "llama.logit_scale=2.0 is not"),
    "experts": ({"llama.expert_count": np.uint32(8)}, "'llama.expert_used_count' is missing"),
    "one of many parts": ({"split.count": np.uint16(3)}, "one of 3 parts; join them"),
}  # fmt: skip


@pytest.mark.parametrize(("more", "part"), LIES.values(), ids=LIES)
def test_metadata_that_lies_is_refused_in_one_line(tmp_path, more, part):
    folder = exported(tmp_path / "hub", "llama")
    path = gguf_files.from_folder(folder, tmp_path / "model.gguf", more=more)
    with pytest.raises(CheckpointError, match=part) as error:
        jaxgen.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])  # whose config.json have other words
def test_a_key_or_a_table_that_a_file_lacks_is_named_as_the_file_would(tmp_path, name):
    folder = exported(tmp_path / "hub", name)
    for i, part in enumerate((*(f"{name}.{key}" for key in NEEDED), "token_embd.weight")):
        path = gguf_files.from_folder(folder, tmp_path / f"{i}.gguf", less=part)
        with pytest.raises(CheckpointError) as error:
            jaxgen.load(path)
        assert str(error.value) == f"{path}: {part!r} is missing"


def test_factors_of_another_rotation_are_refused(tmp_path):
    folder = exported(tmp_path / "hub", "llama-3.1")
    theirs = json.loads((folder / "config.json").read_text())
    theirs["rope_theta"] = 600.0  # of which the factors in the file are not made
    path = gguf_files.from_folder(folder, tmp_path / "model.gguf",
                                  more={"llama.rope.freq_base": np.float32(600)})  # fmt: skip
    with pytest.raises(CheckpointError, match="are not those of Llama"):
        jaxgen.load(path)


def test_a_tensor_of_nan_is_refused_unless_it_is_asked_for(tmp_path):
    folder = exported(tmp_path / "hub", "llama")
    path = gguf_files.from_folder(folder, tmp_path / "model.gguf", "Q8_0")
    raw = bytearray(path.read_bytes())
    from jaxgen.store import gguf

    begin = gguf.open_file(path).tensors["blk.0.ffn_up.weight"].begin
    raw[begin : begin + 2] = b"\0\x7e"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        jaxgen.load(path)
    assert np.isnan(jaxgen.load(path, nonfinite="allow")[1]["layers"]["feed"]["up"]).any()


def test_a_pooling_is_read(tmp_path):
    folder = exported(tmp_path / "hub", "bert")
    for number, mode in ((1, "mean"), (2, "cls"), (3, "last")):
        path = gguf_files.from_folder(folder, tmp_path / f"{mode}.gguf",
                                      more={"bert.pooling_type": np.uint32(number)})  # fmt: skip
        pooling = read_pooling(path)
        assert pooling.modes == (mode,)
        assert np.allclose(np.linalg.norm(pooling.after[0](np.ones((1, 4))), axis=1), 1)
