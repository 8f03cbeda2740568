"""Adapters compute what peft computes with transformers, and each opens what the other writes."""

import json
import os
import warnings

import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.adapters.adapter import merge
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.pretrained import hub_read
from jaxgen.pretrained.peft_read import KEYS, read_adapter, read_settings
from jaxgen.pretrained.peft_write import write_adapter

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SIZES = {"vocab_size": 61}
LLAMA = SIZES | {
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip
# model -> (class of the config, class of the model, settings)
MODELS = {
    "gpt2": ("GPT2Config", "AutoModelForCausalLM",
             {"n_layer": 3, "n_embd": 16, "n_head": 4, "n_positions": 32}),
    "llama": ("LlamaConfig", "AutoModelForCausalLM", LLAMA),
    "phi3": ("Phi3Config", "AutoModelForCausalLM", LLAMA | {"pad_token_id": 0}),
    "falcon": ("FalconConfig", "AutoModelForCausalLM",
               {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4,
                "num_kv_heads": 2, "new_decoder_architecture": True}),
    "bert": ("BertConfig", "AutoModelForMaskedLM",
             {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4,
              "intermediate_size": 24, "max_position_embeddings": 32}),
    "t5": ("T5Config", "AutoModelForSeq2SeqLM",
           {"num_layers": 2, "d_model": 16, "num_heads": 4, "d_kv": 6, "d_ff": 24}),
}  # fmt: skip
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}
KINDS = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "rslora": lambda: peft.LoraConfig(**LORA, use_rslora=True, bias="all"),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True),
    "some": lambda: peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=r".*\.1\..*(c_attn|q_proj|qkv_proj|query.*|\.q)$"
    ),
    "ia3": lambda: peft.IA3Config(),
}
SEQUENCE = {"t5": "SEQ_2_SEQ_LM", "bert": "FEATURE_EXTRACTION"}
VIRTUAL = {
    "prompt": lambda task: peft.PromptTuningConfig(num_virtual_tokens=5, task_type=task),
    "p-tuning": lambda task: peft.PromptEncoderConfig(
        num_virtual_tokens=5, encoder_hidden_size=8, task_type=task
    ),
    "prefix": lambda task: peft.PrefixTuningConfig(num_virtual_tokens=5, task_type=task),
}
TOKENS = np.random.default_rng(0).integers(1, 61, (2, 9))


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory):
    name, auto, settings = MODELS[request.param]
    torch.manual_seed(0)
    if request.param != "t5":
        settings = {"initializer_range": 0.3} | settings
    config = getattr(transformers, name)(**(SIZES | settings))
    home = tmp_path_factory.mktemp(request.param)
    getattr(transformers, auto).from_config(config).save_pretrained(home)
    return request.param, home, getattr(transformers, auto)


def theirs(model):
    ids = torch.from_numpy(TOKENS)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits.numpy()


def ours(params, config):
    more = {}
    if config.topology == "encoder_decoder":
        more["memory"] = jaxgen.encode(params, config, TOKENS)
    return np.asarray(jaxgen.apply(params, config, TOKENS, **more).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft_and_it_opens_ours(kind, base, tmp_path):
    family, home, auto = base
    if (family, kind) == ("phi3", "ia3"):
        pytest.skip("peft knows no targets of it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(auto.from_pretrained(home), KINDS[kind]())
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.2 * torch.randn_like(weight)
        model.save_pretrained(tmp_path / "theirs")
    want, plain = theirs(model), theirs(auto.from_pretrained(home))
    assert np.abs(want - plain).max() > 0.1
    config, params = jaxgen.load(home, adapter=tmp_path / "theirs")
    np.testing.assert_allclose(ours(params, config), want, atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours(merge(params, config), config), want, atol=1e-4, rtol=0)
    known, _ = hub_read.read_config(home)
    adapter = read_adapter(tmp_path / "theirs", known, config)
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", adapter, known, config)
    again = read_adapter(tmp_path / "ours", known, config)
    for path, leaf in tree.flatten(adapter.params).items():
        np.testing.assert_array_equal(leaf, tree.flatten(again.params)[path], err_msg=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = peft.PeftModel.from_pretrained(auto.from_pretrained(home), tmp_path / "ours")
    np.testing.assert_allclose(theirs(opened), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_are_those_of_peft_and_it_opens_ours(kind, base, tmp_path):
    family, home, auto = base
    if kind == "prefix" and family == "t5":  # peft takes heads to share the width of the model
        home = tmp_path / "base"
        config = transformers.AutoConfig.from_pretrained(base[1])
        config.d_kv = config.d_model // config.num_heads
        auto.from_config(config).save_pretrained(home)
    if kind == "prefix" and family == "falcon":
        pytest.skip("peft does not know how many key heads it has")
    task = SEQUENCE.get(family, "CAUSAL_LM")
    model = peft.get_peft_model(auto.from_pretrained(home), VIRTUAL[kind](task))
    with torch.no_grad():
        for weight in model.prompt_encoder.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "theirs")
    want, plain = theirs(model)[:, -9:], theirs(auto.from_pretrained(home))
    assert np.abs(want - plain).max() > 0.1
    config, params = jaxgen.load(home, adapter=tmp_path / "theirs")
    np.testing.assert_allclose(ours(params, config), want, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="part of no weight and can't be merged"):
        merge(params, config)
    known, _ = hub_read.read_config(home)
    adapter = read_adapter(tmp_path / "theirs", known, config)
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", adapter, known, config)
    again = read_adapter(tmp_path / "ours", known, config)
    for path, leaf in tree.flatten(adapter.params).items():
        np.testing.assert_array_equal(leaf, tree.flatten(again.params)[path], err_msg=path)
    opened = peft.PeftModel.from_pretrained(auto.from_pretrained(home), tmp_path / "ours")
    np.testing.assert_allclose(theirs(opened)[:, -9:], want, atol=1e-5, rtol=0)


CONFIGS = ("LoraConfig", "IA3Config", "PromptTuningConfig", "PromptEncoderConfig",
           "PrefixTuningConfig")  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_peft_is_followed_or_refused_by_name(name, tmp_path):
    virtual = {"num_virtual_tokens": 2} if name.startswith("P") else {}
    kind = getattr(peft, name)(**virtual)
    about = {key: getattr(value, "value", value) for key, value in kind.to_dict().items()}
    about |= {key: list(value) for key, value in about.items() if isinstance(value, set)}

    def written(more):
        (tmp_path / "adapter_config.json").write_text(json.dumps(about | more))
        return read_settings(tmp_path)

    assert written({})["peft_type"] == about["peft_type"]
    followed = KEYS[about["peft_type"]]
    # A key of old folders, and one that PEFT leaves out of what it writes.
    assert followed - {"merge_weights", "runtime_config"} <= about.keys()
    for key in about.keys() - followed:
        with pytest.raises(CheckpointError, match=rf"{key}=\[7\] is not followed here; train"):
            written({key: [7]})


def test_adapters_of_tables_are_refused_by_name(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    for number, (more, said) in enumerate((
        ({"target_modules": ["embed_tokens", "q_proj"]},
         r"embed_tokens.lora_embedding_A is LoRA of a table of tokens"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
         "trainable_token_indices=.* is not followed here"),
    )):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
            peft.get_peft_model(base, peft.LoraConfig(r=2, **more)).save_pretrained(
                tmp_path / str(number)
            )
        with pytest.raises(CheckpointError, match=said):
            jaxgen.load(tmp_path / "base", adapter=tmp_path / str(number))
