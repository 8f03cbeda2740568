"""The golden files are what the installed transformers computes; what we write, it opens."""

import json
import os
from functools import partial

import jax
import numpy as np
import parity_cases as cases
import pytest
from parity_run import differences, inputs, states, write_folder
from random_params import random_params
from safetensors.numpy import load_file

import jaxgen
from jaxgen import settings
from jaxgen.errors import CheckpointError
from jaxgen.pretrained import hub_parity

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": cases.V, "context": 32, "layers": 2, "d_model": 16, "heads": 4}
LLAMA = SHAPE | {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none"}
SCALING = {"kind": "llama3", "factor": 8.0, "original_context": 16}
MODELS = {
    "gpt2": SHAPE,
    "llama": LLAMA | {"kv_heads": 2, "output": "untied", "rope_scaling": SCALING},
    "gemma3_text": LLAMA
    | {"norm": "rms_offset", "norm_at": "both", "feed": "geglu", "embed_scale": "root"}
    | {"qk_norm": "head", "pattern": ("local", "global"), "window": 5, "rope_theta_local": 1e3},
}

SMALL = SHAPE | {"init_std": 0.3}
BERT = SMALL | {"topology": "encoder", "norm_at": "post", "embed_norm": "norm", "feed": "gelu"}
TWO = SMALL | {"topology": "encoder_decoder"}
BASES = {
    "gpt2": SMALL,
    "bert": BERT | {"token_types": 2, "norm_epsilon": 1e-12},
    "roberta": BERT | {"token_types": 1, "position_offset": 2},
    "t5": TWO
    | {"norm": "rms", "positions": "relative", "biases": "none", "query_scalar": 1.0}
    | {"feed": "geglu", "output": "untied"},
    "bart": TWO
    | {"norm_at": "post", "embed_norm": "norm", "position_offset": 2, "feed": "gelu"}
    | {"output_bias": "bias"},
    "marian": TWO
    | {"norm_at": "post", "positions": "sinusoid", "embed_scale": "root", "feed": "silu"}
    | {"output_bias": "bias"},
    "vanilla": TWO
    | {"norm_at": "post", "positions": "sinusoid", "embed_scale": "root", "feed": "relu"},
}
TOWERS = [("gpt2", "classes"), ("bert", "pooled"), ("bert", "spans"), ("roberta", "classes"),
          ("t5", "lm"), ("bart", "lm"), ("marian", "lm"), ("vanilla", "lm")]  # fmt: skip


@pytest.mark.parametrize("family", cases.CASES)
def test_golden_files_are_what_transformers_computes(family):
    from make_golden_models import outputs

    golden = cases.read(family)
    for name, given in cases.CASES[family].items():
        for what, array in outputs(family, given).items():
            if what != "about":
                np.testing.assert_allclose(array, golden[f"{name}/{what}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("family", "name"), cases.VARIANT_NAMES)
def test_variants_are_computed_as_transformers_does_and_it_opens_ours(family, name, tmp_path):
    from make_golden_models import outputs

    want = outputs(family, cases.VARIANTS[family][name])
    about = json.loads(bytes(want["about"]))
    folder = write_folder(tmp_path / "theirs", about)
    logits, hidden, same_text = differences(folder, want)
    assert max(logits, hidden) < 1e-4 and same_text
    config, params = jaxgen.load(folder)
    jaxgen.save(tmp_path / "ours", config, params, layout="hf", family=family)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    given = dict(zip(("input_ids", "position_ids", "attention_mask"), inputs(), strict=True))
    with torch.no_grad():
        again = opened(**{n: torch.from_numpy(np.array(x)) for n, x in given.items()}).logits
    real = np.asarray(given["attention_mask"]) == 1
    np.testing.assert_allclose(again.numpy()[real], want["logits"][real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", cases.RIGHT, ids=lambda kind: kind[1])
def test_golden_heads_and_towers_are_what_transformers_computes(kind):
    from make_golden_models import right_outputs

    golden = cases.read(cases.home(kind))
    for name, given in cases.RIGHT[kind].items():
        for what, array in right_outputs(kind, given).items():
            if what != "about":
                wanted = golden[f"{kind[1]} {name}/{what}"]
                np.testing.assert_allclose(array, wanted, atol=2e-5, rtol=0)


def test_the_golden_first_transformer_is_what_torch_computes():
    from make_golden_models import vanilla_outputs

    golden = cases.read("right")
    for what, array in vanilla_outputs().items():
        if what != "about":
            np.testing.assert_allclose(array, golden[f"vanilla/{what}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("family", "head"), TOWERS)
def test_the_gate_after_an_export_measures_encoders_and_towers(family, head, tmp_path):
    classes = 3 if head == "classes" else None
    config = settings.build(jaxgen.ModelConfig, BASES[family] | {"head": head, "classes": classes})
    params = random_params(config)
    jaxgen.save(tmp_path / "hub", config, params, layout="hf", family=family)
    told = hub_parity.compare(tmp_path / "hub", config, params)
    assert told.startswith("largest difference ")
    leaf = next(iter(params["layers"]["attn"]))
    params["layers"]["attn"][leaf] = params["layers"]["attn"][leaf] + 0.3
    with pytest.raises(CheckpointError, match="computes other logits"):
        hub_parity.compare(tmp_path / "hub", config, params)


@pytest.mark.parametrize("family", MODELS)
def test_transformers_opens_what_we_write_and_computes_the_same(family, tmp_path):
    config = settings.build(jaxgen.ModelConfig, MODELS[family])
    params = jaxgen.init(config, jax.random.key(1))
    jaxgen.save(tmp_path / "hub", config, params, layout="hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub").eval()
    assert model.config.model_type == family
    with torch.no_grad():
        theirs = model(torch.from_numpy(cases.TOKENS)).logits.numpy()
    np.testing.assert_allclose(
        jaxgen.apply(params, config, cases.TOKENS).logits, theirs, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", cases.ENCODER_VARIANTS, ids=lambda kind: kind[1])
def test_variants_of_encoders_are_computed_alike_in_both_directions(kind, tmp_path):
    from make_golden_models import right_outputs

    for name, given in cases.ENCODER_VARIANTS[kind].items():
        about = json.loads(bytes(right_outputs(kind, given)["about"]))
        folder = write_folder(tmp_path / name, about)
        config, params = jaxgen.load(folder)
        assert hub_parity.compare(folder, config, params).startswith("largest difference ")
        ours = tmp_path / f"{name}, ours"
        jaxgen.save(ours, config, params, layout="hf", family=kind[0])
        assert json.loads((ours / "config.json").read_bytes())["architectures"] == [kind[1]]
        assert hub_parity.compare(ours, config, params).startswith("largest difference ")


@pytest.mark.parametrize("kind", cases.UNEQUAL, ids=lambda kind: kind[0])
def test_towers_of_unequal_sizes_are_computed_alike_in_both_directions(kind, tmp_path):
    from make_golden_models import right_outputs

    given, close = cases.UNEQUAL[kind], partial(np.testing.assert_allclose, atol=1e-4, rtol=0)
    want = right_outputs(kind, given)
    folder = write_folder(tmp_path / "theirs", json.loads(bytes(want["about"])))
    config, params = jaxgen.load(folder)
    source, mask = cases.source(given["pad_token_id"]), jax.numpy.asarray(cases.MASK)
    memory = jaxgen.encode(params, config, source, segments=mask)
    out = jaxgen.apply(params, config, cases.TARGETS, memory=memory, taps=("*/out",))
    close(out.logits, want["logits"])
    close(states(config, out), want["hidden"][1:])
    start = np.full((2, 1), given["decoder_start_token_id"], np.int32)
    text = jaxgen.generate(
        params, config, start, jax.random.key(0), length=cases.NEW, memory=memory
    )
    assert text.tolist() == want["greedy"].tolist()
    jaxgen.save(tmp_path / "ours", config, params, layout="hf", family=kind[0])
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "ours"))
    assert all(np.array_equal(before[name], after[name]) for name in after)
    assert hub_parity.compare(tmp_path / "ours", config, params).startswith("largest difference ")
