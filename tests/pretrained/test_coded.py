"""Integers of quantised weights in GGUF files and in folders of compressed-tensors, as they are."""

import json

import jax
import numpy as np
import pytest
from quantised_weights import RECIPES, quantise
from test_gguf_written import model, of_letters

import jaxgen
from jaxgen.adapters.sites import sites
from jaxgen.cli.app import main
from jaxgen.errors import CheckpointError
from jaxgen.ops.int8 import Int8, Int8Activations
from jaxgen.pretrained import coded, compressed_tensors
from jaxgen.pretrained.compressed_tensors import pack, unpack
from jaxgen.store import gguf, safetensors
from jaxgen.tree import flatten, unflatten

IDS = np.arange(24).reshape(2, 12)
SIZES = {
    "llama": {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32},
    "gpt2": {"n_embd": 128, "n_inner": 128},
    "gpt_neox": {"hidden_size": 128, "intermediate_size": 128},
    "falcon-grouped": {"hidden_size": 128, "ffn_hidden_size": 128},
}


def quantised(recipe, family="llama", tables=True):
    """Return a model of 128 inputs whose layers are quantised, and perhaps its tables."""
    config, params = model(family, vocab_size=320, **SIZES.get(family, SIZES["llama"]))
    flat = flatten(quantise(config, params, recipe))
    if tables:
        for path in {"embed/tokens", "unembed/tokens"} & flat.keys():
            flat[path] = Int8.of_transposed(flat[path], 1)
    return config, unflatten(flat)


def logits(config, params):
    return np.asarray(jaxgen.apply(params, config, IDS).logits)


# Those after the first have queries, keys and values in one tensor, in orders of their own.
@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(("int8", "llama"), ("int8-g32", "llama"), ("int4-g32", "llama"), ("int8", "gpt2")),
        *(("int4-g32", "phi3"), ("int8-g32", "gpt_neox"), ("int8", "falcon-grouped")),
    ],
)
def test_a_gguf_file_holds_the_same_integers_and_numbers(tmp_path, name, family):
    config, params = quantised(name, family)
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf", tokenizer=of_letters())
    kinds = {t.dtype for t in gguf.open_file(tmp_path / "m.gguf").tensors.values()}
    assert kinds == ({"Q4_0", "Q8_0", "F32"} if "int4" in name else {"Q8_0", "F32"})
    own = flatten(params)
    numbers = flatten(jaxgen.load(tmp_path / "m.gguf")[1])
    for path, site in sites(config).items():
        for layer in range(config.layers):
            of_layer = jax.tree.map(lambda x, i=layer: x[i], own[path])
            dense = coded.of_leaf(of_layer).numbers().T.reshape(site.shape)
            np.testing.assert_array_equal(numbers[path][layer], dense)


@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "llama") for name in RECIPES), ("int4-g64-zeros", "phi3"), ("int8", "gpt_neox")],
)
def test_a_folder_of_compressed_tensors_is_read_as_it_was_written(tmp_path, name, family):
    config, params = quantised(name, family)
    jaxgen.save(tmp_path / "hub", config, params, layout="hf", family=family)
    about = json.loads((tmp_path / "hub" / "config.json").read_text())["quantization_config"]
    assert about["config_groups"]["group_0"]["weights"]["symmetric"] is ("zeros" not in name)
    plain, stored = (jaxgen.load(tmp_path / "hub", weights=w)[1] for w in ("plain", "stored"))
    wanted = logits(config, params)
    np.testing.assert_allclose(logits(config, stored), wanted, rtol=1e-4, atol=1e-5)
    if name != "w8a8":
        np.testing.assert_allclose(logits(config, plain), wanted, rtol=1e-4, atol=1e-5)
    for path in sites(config):
        read, other = (flatten(tree)[path] for tree in (stored, params))
        assert isinstance(read, Int8Activations) == (name == "w8a8")
        if hasattr(other, "widened"):
            other = jax.jit(type(other).widened)(other)
        for x, y in zip(jax.tree.leaves(read), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(x, y)


def test_what_has_no_such_form_is_written_as_numbers_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxgen.pretrained.hub_parity.can_compare", lambda: False)
    config, params = quantised("int4-g64-zeros")
    jaxgen.save(tmp_path / "own", config, params, tokenizer=of_letters())
    jaxgen.save(tmp_path / "hub", config, params, layout="hf", tokenizer=of_letters())
    tables, layers = 2 * 320 * 128, sum(np.prod(s.shape) for s in sites(config).values()) * 2
    said = {
        "m.gguf": f"{layers:,} of {layers + tables:,} quantised numbers of",
        "out": f"{tables:,} of {layers + tables:,} quantised numbers of",
    }
    for target, words in (("m.gguf", []), ("out", ["--to", "hf"])):
        assert main(["convert", str(tmp_path / "own"), str(tmp_path / target), *words]) == 0
        assert said[target] in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "again"), "--to", "jaxgen"]) == 0
    assert f"{layers:,} of them quantised, with the integers" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "m.gguf"), str(tmp_path / "t"), "--to", "jaxgen"]) == 0
    assert f"{tables:,} of {tables:,} quantised numbers of" in capsys.readouterr().out
    words = [str(tmp_path / "own"), str(tmp_path / "wide"), "--to", "jaxgen", "--dtype", "bfloat16"]
    assert main(["convert", *words]) == 0
    config, params = jaxgen.load(tmp_path / "wide")
    assert {str(leaf.dtype) for leaf in flatten(params).values()} == {"bfloat16"}


@pytest.mark.parametrize(("name", "rounds"), [("w8a8", True), ("int8", False)])
def test_a_gguf_file_whose_inputs_are_rounded_no_more_is_named(
    tmp_path, monkeypatch, capsys, name, rounds
):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    jaxgen.save(tmp_path / "own", *quantised(name), tokenizer=of_letters())
    assert main(["convert", str(tmp_path / "own"), str(tmp_path / "m.gguf")]) == 0
    assert ("inputs are rounded no more" in capsys.readouterr().out) == rounds


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_integers_are_unpacked(bits):
    rng = np.random.default_rng(0)
    integers = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 21)).astype(np.int8)
    words = pack(integers, bits)
    assert words.shape == (3, -(-21 * bits // 32)) and words.dtype == np.int32
    np.testing.assert_array_equal(unpack(words, bits, 21), integers)
    first = int(words[0, 0]) & (2**bits - 1)
    assert first == int(integers[0, 0]) + 2 ** (bits - 1)


BAD = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "here gptq"),
    "awq": ({"quant_method": "awq"}, "here awq"),
    "float8": ({"format": "float-quantized"}, "format=float-quantized is not read"),
    "bits": ({"weights": {"num_bits": 3}}, "int of 3 bits are not read"),
    "blocks": ({"weights": {"num_bits": 8, "strategy": "block"}}, "a scale for each block"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_ways_of_quantising_are_refused_by_name(tmp_path, name):
    change, said = BAD[name]
    config, params = quantised("int8", tables=False)
    jaxgen.save(tmp_path / "hub", config, params, layout="hf")
    path = tmp_path / "hub" / "config.json"
    about = json.loads(path.read_text())
    group = about["quantization_config"]["config_groups"]["group_0"]
    group["weights"] |= change.pop("weights", {}) if isinstance(change, dict) else {}
    if "format" in change:
        group["format"] = change["format"]
    about["quantization_config"] |= change
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=said):
        jaxgen.load(tmp_path / "hub")


def test_a_damaged_matrix_is_named(tmp_path):
    config, params = quantised("int4-g32", tables=False)
    jaxgen.save(tmp_path / "hub", config, params, layout="hf")
    path = tmp_path / "hub" / "model.safetensors"
    opened = safetensors.open_file(path)
    arrays = {name: tensor.read() for name, tensor in opened.items()}
    name = next(name for name in arrays if name.endswith("q_proj.weight_packed"))
    for key, array, said in (
        (name, arrays[name][:, :-1], "packed with neither 4 nor 8 bits"),
        (name.replace("packed", "g_idx"), np.zeros(64, np.int32), "weight_g_idx orders groups"),
    ):
        changed = arrays | {key: np.ascontiguousarray(array)}
        path.unlink()
        shapes = {name: (x.dtype.name, x.shape) for name, x in changed.items()}
        safetensors.write_safetensors(path, shapes, changed.__getitem__, {})
        with pytest.raises(CheckpointError, match=said):
            jaxgen.load(tmp_path / "hub")


@pytest.mark.parametrize(
    ("inputs", "names", "part"),
    [
        ({"num_bits": 8, "dynamic": False}, [], "input_activations .* is ignored"),
        ({"num_bits": 4, "dynamic": True}, [], "input_activations .* is ignored"),
        (None, ["a.k_scale", "a.v_scale"], "k_scale, v_scale of quantised inputs or caches"),
    ],
)
def test_what_is_not_read_of_a_quantised_folder_is_said(inputs, names, part, tmp_path):
    scheme = {"weights": {"type": "int", "num_bits": 8}, "input_activations": inputs}
    config = {"format": "int-quantized", "config_groups": {"group_0": scheme}}
    about = {compressed_tensors.QUANTISATION: config}
    shapes = dict.fromkeys(names, ("float32", (1,)))
    safetensors.write_safetensors(tmp_path / "x", shapes, lambda _: np.ones(1, np.float32), {})
    stored = safetensors.open_file(tmp_path / "x")
    with pytest.warns(UserWarning, match=part):
        assert not compressed_tensors.opened(tmp_path, about, stored)
