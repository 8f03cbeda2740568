"""What of experts no golden file holds, against transformers: balance, texts, wholes, rounding."""

import json

import jax
import numpy as np
import parity_cases as cases
import pytest
from parity_run import states, write_folder
from safetensors.numpy import save_file

import jaxgen
from jaxgen.models import api
from jaxgen.models.families import FAMILIES
from jaxgen.ops import experts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BALANCED = [name for name in cases.EXPERTS if "router_aux_loss_coef" in FAMILIES[name].defaults]
GROWING = {"attn_temperature_tuning": True, "floor_scale": 3, "attn_scale": 0.4}
IDS = cases.TOKENS[:, :9]


def made(family, **settings):
    """Return (model, folder's files) of a case, in evaluation."""
    from make_golden_models import model_of

    (case,) = cases.EXPERTS[family].values()
    return model_of(family, case | settings)


def folder_of(home, model, shapes):
    """Write the folder of a case's model; return it."""
    model.config.architectures = [type(model).__name__]
    return write_folder(home, {"config": json.loads(model.config.to_json_string()),
                               "shapes": shapes})  # fmt: skip


@pytest.mark.parametrize("family", BALANCED)
def test_balance_is_that_of_transformers(family, tmp_path):
    model, shapes = made(family, output_router_logits=True)
    ids = torch.from_numpy(IDS)
    with torch.no_grad():
        wanted = model(ids, labels=ids)
    config, params = jaxgen.load(folder_of(tmp_path / "hub", model, shapes))
    assert config.experts.balance == model.config.router_aux_loss_coef
    found = api.hidden(params, config, IDS)
    np.testing.assert_allclose(
        experts.balance_loss(found.router, config.experts.balance_over),
        float(wanted.aux_loss),
        atol=1e-5,
    )


@pytest.mark.parametrize("family", cases.EXPERTS)
def test_greedy_text_is_equal_and_transformers_opens_ours_bit_for_bit(family, tmp_path):
    more = GROWING if family == "llama4_text" else {}
    model, shapes = made(family, **more)
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)).logits.numpy()
        given = torch.from_numpy(IDS[:1, :5])
        how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        text = model.generate(given, attention_mask=torch.ones_like(given), **how)
    config, params = jaxgen.load(folder_of(tmp_path / "hub", model, shapes))
    found = jaxgen.apply(params, config, IDS).logits
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)
    ours = jaxgen.generate(params, config, IDS[:1, :5], jax.random.key(0), length=8)
    np.testing.assert_array_equal(np.asarray(ours)[0, -8:], text[0, 5:].numpy())
    jaxgen.save(tmp_path / "ours", config, params, layout="hf", family=family)
    auto = transformers.AutoModelForCausalLM
    back = auto.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(back) is type(model)
    own, other = (dict(sorted(one.state_dict().items())) for one in (model, back))
    assert own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own)


@pytest.mark.parametrize("family", [name for name in cases.EXPERTS if FAMILIES[name].other_rows])
def test_experts_that_a_file_holds_in_one_tensor_are_read(family, tmp_path):
    model, shapes = made(family)
    folder = folder_of(tmp_path / "hub", model, shapes)
    apart = jaxgen.load(folder)[1]
    one = {name: x.numpy() for name, x in model.state_dict().items() if name != "lm_head.weight"}
    one["lm_head.weight"] = model.lm_head.weight.detach().numpy()
    assert any(name.endswith("experts.gate_up_proj") for name in one)
    save_file({n: np.ascontiguousarray(x) for n, x in one.items()}, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, jaxgen.load(folder)[1], apart)


SEES = {"hidden_size": 8, "intermediate_size": 8}
QWEN_SEES = SEES | {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "patch_size": 14}
LLAMA_SEES = SEES | {"num_hidden_layers": 1, "num_attention_heads": 2, "vision_output_dim": 8}
LLAMA_SEES |= {"image_size": 28, "patch_size": 14, "projector_input_dim": 8}
LLAMA_SEES |= {"projector_output_dim": 8}
MISTRAL_SEES = SEES | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
MISTRAL_SEES |= {"patch_size": 14, "model_type": "pixtral", "head_dim": 4}
# Config, text, what sees, and the model_type of what is read.
WHOLES = {
    "Llama4": ("llama4_text", LLAMA_SEES),
    "Qwen3_5Moe": ("qwen3_5_moe_text", QWEN_SEES),
    "Qwen3_5": ("qwen3_5_text", QWEN_SEES),
    "Mistral3": ("mistral", MISTRAL_SEES),
}


@pytest.mark.parametrize("name", WHOLES)
def test_the_language_model_of_a_folder_that_sees_writes_as_there(name, tmp_path):
    family, sees = WHOLES[name]
    (text,) = list(cases.CASES[family].values())[:1]
    text = {key: value for key, value in text.items() if key != "rms_norm_eps"}
    config = getattr(transformers, f"{name}Config")(
        text_config=text | {"model_type": family}, vision_config=sees
    )
    torch.manual_seed(0)
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for x in whole.parameters():
            x.copy_(torch.randn(x.shape) * 0.2 + (x.ndim == 1))
        # Llama4ForConditionalGeneration fails without an image.
        reads = whole.language_model if name == "Llama4" else whole
        wanted = reads(input_ids=torch.from_numpy(IDS)).logits.numpy()
    whole.save_pretrained(tmp_path / "hub")
    with pytest.warns(UserWarning, match="the language model is read; left out: "):
        own, params = jaxgen.load(tmp_path / "hub")
    np.testing.assert_allclose(jaxgen.apply(params, own, IDS).logits, wanted, atol=2e-4, rtol=0)
    jaxgen.save(tmp_path / "ours", own, params, layout="hf", family=family)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = back(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(again, wanted, atol=2e-5, rtol=0)


def test_the_delta_rule_rounds_no_more_than_transformers_does(tmp_path, monkeypatch):
    """With an epsilon of 1e-6, errors of either are those of a few tokens; many tell which is."""
    model, shapes = made("qwen3_next", rms_norm_eps=1e-6, mlp_only_layers=[0, 1, 2])
    ids = np.random.RandomState(5).randint(3, cases.V, (64, 20))

    def hidden():
        with torch.no_grad():
            out = model(torch.from_numpy(ids), output_hidden_states=True)
        return np.stack([x.numpy() for x in out.hidden_states[1:]])

    theirs = hidden()
    config, params = jaxgen.load(folder_of(tmp_path / "hub", model, shapes))
    run = jax.jit(lambda p, t: jaxgen.apply(p, config, t, taps=("*/out",)))
    ours = states(config, run(params, ids))
    model.double()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    exact = hidden()
    assert exact.dtype == np.float64

    def error(found):
        most = np.abs(found - exact).reshape(len(exact), len(ids), -1).max(axis=2)
        return np.exp(np.log(most).mean(axis=1))  # of each layer, over the texts

    assert (error(ours) < 1.1 * error(theirs)).all(), (error(ours), error(theirs))
