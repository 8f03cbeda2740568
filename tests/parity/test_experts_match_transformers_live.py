"""Families with experts against transformers: logits, balance, greedy text, files both ways."""

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.models import api
from jaxgen.ops import experts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LOCAL = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
NAMED = SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
QWEN = NAMED | {"moe_intermediate_size": 12, "norm_topk_prob": True}
KINDS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GLM = SIZES | {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_group": 4,
    "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 1, "head_dim": 8,
    "routed_scaling_factor": 2.5, "use_qk_norm": True,
}  # fmt: skip
LATENT = GLM | {
    "kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 8, "num_key_value_heads": 2,
}  # fmt: skip
LATENT = {key: value for key, value in LATENT.items() if key not in ("use_qk_norm", "head_dim")}
CASES = {
    "deepseek_v2": {
        "groups": LATENT | {"topk_method": "group_limited_greedy"},
        "greedy, all layers": LATENT | {"topk_method": "greedy", "first_k_dense_replace": 0},
    },
    "deepseek_v3": {
        "groups": LATENT,
        "not normalised, one group": LATENT
        | {"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    },
    "qwen3_next": {
        "both mixers": QWEN
        | {"num_hidden_layers": 4, "head_dim": 8, "shared_expert_intermediate_size": 20}
        | {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
        | {"linear_value_head_dim": 8, "rms_norm_eps": 1e-3, "mlp_only_layers": []},
    },
    "mixtral": {"plain": LOCAL, "window": LOCAL | {"sliding_window": 4}},
    "qwen2_moe": {
        "plain": QWEN | {"shared_expert_intermediate_size": 20},
        "not normalised": QWEN | {"norm_topk_prob": False, "qkv_bias": False},
    },
    "qwen3_moe": {
        "plain": QWEN | {"head_dim": 8},
        "not normalised, biases": QWEN | {"norm_topk_prob": False, "attention_bias": True},
    },
    "olmoe": {"plain": NAMED, "normalised": NAMED | {"norm_topk_prob": True}},
    "gpt_oss": {
        "windows": LOCAL | KINDS | {"head_dim": 8},
        "one expert": LOCAL | {"head_dim": 8, "num_experts_per_tok": 1},
    },
    "granitemoe": {
        "multipliers": LOCAL
        | {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5}
        | {"attention_multiplier": 0.3},
    },
    "glm4_moe": {
        "groups": GLM,
        "one group, biases": GLM
        | {"n_group": 1, "topk_group": 1, "attention_bias": True, "norm_topk_prob": False},
    },
}


@pytest.mark.parametrize(
    ("family", "case"), [(family, case) for family, cases in CASES.items() for case in cases]
)
def test_it_computes_what_transformers_does_and_is_written_bit_for_bit(family, case, tmp_path):
    config = transformers.AutoConfig.for_model(family, **CASES[family][case])
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        biases = [x for name, x in model.named_buffers() if name.endswith("correction_bias")]
        for x in [*model.parameters(), *biases]:
            x.copy_(torch.randn(x.shape, generator=draw) * 0.3 + (x.ndim == 1))
    ids = torch.randint(3, 48, (2, 9), generator=draw)
    with torch.no_grad():
        wanted = model(ids, labels=ids)
        greedy = model.generate(ids[:1, :5], max_new_tokens=4, do_sample=False, eos_token_id=None)
    model.save_pretrained(tmp_path / "theirs")
    own, params = jaxgen.load(tmp_path / "theirs")
    out = jaxgen.apply(params, own, ids.numpy())
    np.testing.assert_allclose(out.logits, wanted.logits.numpy(), atol=1e-4, rtol=0)
    text = jaxgen.generate(params, own, ids.numpy()[:1, :5], jax.random.key(0), length=4)
    np.testing.assert_array_equal(np.asarray(text)[0, -4:], greedy[0, 5:].numpy())
    if getattr(wanted, "aux_loss", None) is not None:
        found = experts.balance_loss(api.hidden(params, own, ids.numpy()).router, "model")
        np.testing.assert_allclose(found, float(wanted.aux_loss), atol=1e-5)
    jaxgen.save(tmp_path / "ours", own, params, layout="hf", family=family)
    back = auto.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(back) is type(model)
    for (name, one), (_, other) in zip(
        sorted(model.state_dict().items()), sorted(back.state_dict().items()), strict=True
    ):
        assert torch.equal(one, other), name
