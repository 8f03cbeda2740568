"""A model through `jaxgen compress` and back: folders, kills, other verbs, and bad input."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.cli.app import main
from jaxgen.compress import layerwise, matrix, write
from jaxgen.compress.recipe import PRESETS, Recipe, read_recipe
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.nn import unroll
from jaxgen.nn.stack import layer_params
from jaxgen.tokens import train as train_tokenizer
from jaxgen.tokens.settings import TokenizerSettings

CONFIG = jaxgen.ModelConfig(
    vocab_size=260, context=32, layers=2, d_model=64, heads=4, d_ff=64, feed="swiglu", norm="rms",
    positions="rope",
)  # fmt: skip
SMALL = {"rows": 4, "length": 16}
TOKENS = jnp.arange(24).reshape(2, 12)
# `jaxgen WORDS...`, killed once the first layer is written.
KILLED = (
    "import os, sys; from jaxgen import terminal; from jaxgen.cli.app import main; "
    "terminal.say = lambda line: line.startswith('layer 1') and os.kill(os.getpid(), 9); "
    "main(sys.argv[1:])"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a model of random weights, its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("compress")
    params = jaxgen.init(CONFIG, jax.random.key(0))
    tokenizer = train_tokenizer(TokenizerSettings(kind="bytes"), ())
    jaxgen.save(folder / "model", CONFIG, params, tokenizer=tokenizer)
    text = "".join(f"{i} times {i} is {i * i}; what is {i + 1}? " for i in range(60))
    (folder / "text.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def model(home):
    """Return (config, params) of the folder."""
    return jaxgen.load(home / "model")


@pytest.fixture(scope="module")
def logits(model):
    """Return what the model says of TOKENS."""
    return jaxgen.apply(model[1], model[0], TOKENS).logits


@pytest.fixture(scope="module")
def rows():
    """Return ids [4, 16]."""
    return np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.int32)


@pytest.fixture(scope="module")
def inputs():
    """Return the statistics of inputs of which some are larger than others, [256, 64]."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 64)) * rng.gamma(1.0, size=64), jnp.float32)
    return layerwise.Statistics(x.T @ x, jnp.sum(jnp.abs(x), 0), jnp.max(jnp.abs(x), 0))


def test_statistics_are_those_of_the_inputs_that_the_model_computes(model, rows):
    config, params = model
    [x] = layerwise.embed(params, config, rows)
    taps = jaxgen.apply(params, config, rows, taps=("layers/out",)).taps["layers/out"]
    for layer in range(config.layers):
        own = layer_params(params, config, layer)
        recorded = layerwise.record_layer(own, {}, config, layer, x)
        scale = jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + config.norm_epsilon)
        normed = (x * scale * own["attn_norm"]["scale"]).reshape(-1, 64)
        np.testing.assert_allclose(recorded["attn/q"].gram, normed.T @ normed, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(recorded["attn/q"].total, abs(normed).sum(0), rtol=1e-4)
        np.testing.assert_allclose(recorded["attn/q"].most, abs(normed).max(0), rtol=1e-4)
        assert set(recorded) == {"attn/q", "attn/o", "feed/up", "feed/down"}
        x = layerwise.run_layer(own, {}, config, layer, x)
        np.testing.assert_array_equal(x, taps[layer])


@pytest.mark.parametrize("method", ["gptq", "sparsegpt"])
def test_every_matrix_of_every_layer_loses_less_than_by_rounding(model, rows, tmp_path, method):
    config, params = model
    pruned = {"prune": "sparsegpt", "pattern": "2:4"}
    how = pruned if method == "sparsegpt" else {"format": "int4", "group": 32, "method": "gptq"}
    receipt = write.compress_layers(params, config, Recipe(**how, **SMALL), rows, tmp_path / "p")
    assert len(receipt["matrices"]) == 7 * config.layers
    assert all(0 < row["error"] < row["nearest"] for row in receipt["matrices"])


# int4-g32 is int4-gptq with another group, as `compress_words` has it.
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "int4-g32"])
def test_every_preset_gives_a_folder_that_predicts_nearly_as_before(
    home, model, logits, name, monkeypatch
):
    out = home / f"out-{name}"
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    needs = ["--data", str(home / "text.txt")] * PRESETS[name].calibrates
    words = f"{name},rows=4,length=16" if PRESETS[name].calibrates else name
    assert (
        main(["compress", str(home / "model"), "--recipe", words, "--out", str(out), *needs]) == 0
    )
    config, params = jaxgen.load(out)
    after = jaxgen.apply(params, config, TOKENS).logits
    distance = np.linalg.norm(after - logits) / np.linalg.norm(logits)
    sparse = PRESETS[name].prune != "none"
    assert 0 < distance < (0.9 if sparse else 0.4 if "4" in name.partition("-")[0] else 0.05)
    stored = (
        sum(x.nbytes for x in jax.tree.leaves(model[1]))
        / (out / "model.safetensors").stat().st_size
    )
    assert stored > (1 - 1e-2 if sparse else 2.8)
    receipt = json.loads((out / "compress.json").read_text())
    assert receipt["name"].startswith(name) and not (home / f"out-{name}.parts").exists()
    # Decoding reads the leaves in its own layout, fused where they can be.
    monkeypatch.setitem(unroll.UNROLL_LIMITS, "cpu", (0, 48))
    ready = serving.ready(params, config)
    assert serving.is_unrolled(ready)
    np.testing.assert_allclose(jaxgen.apply(ready, config, TOKENS).logits, after, atol=1e-4)


def test_a_folder_written_again_is_the_same(home, model, tmp_path):
    config, params = model
    recipe = PRESETS["int4"]
    write.compress_layers(params, config, recipe, None, tmp_path / "p")
    flat = tree.flatten(params)
    write.assemble(flat, config, recipe, tmp_path / "p")
    jaxgen.save(tmp_path / "one", config, tree.unflatten(flat))
    assert jax.tree.leaves(flat)[0].dtype in (jnp.int8, jnp.uint8, jnp.float32)
    loaded = jaxgen.load(tmp_path / "one")
    jaxgen.save(tmp_path / "two", *loaded)
    again = jaxgen.load(tmp_path / "two")
    for a, b in zip(jax.tree.leaves(loaded[1]), jax.tree.leaves(again[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def compress_words(home, out):
    recipe = "int4-gptq,rows=4,length=16,group=32"
    words = ["compress", str(home / "model"), "--recipe", recipe, "--data", str(home / "text.txt")]
    return [*words, "--out", str(out)]


def test_killed_after_the_first_layers_it_ends_with_the_same_bytes(home, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    assert main(compress_words(home, home / "whole")) == 0
    out = home / "killed"
    words = compress_words(home, out)
    assert subprocess.run([sys.executable, "-c", KILLED, *words]).returncode == -9
    part = home / "killed.parts" / "layer-0000.json"
    assert part.exists() and not out.exists()
    assert not part.with_name("layer-0001.json").exists()
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "layer 2 of 2" in said and "layer 1 of 2" not in said
    whole = (home / "whole" / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("recipe", "words", "code", "said"),
    [
        ("int5", [], 2, "int5: no such recipe"),
        ("int4,grup=32", [], 2, "did you mean 'recipe.group'"),
        ("int4,group=48", [], 2, "group=48 must be one of 32, 64, 128"),
        ("int4,group=128", [], 2, "does not divide the 64 inputs of layers/attn/k; give group=64"),
        ("int8,symmetric=false", [], 2, "symmetric=False is for format=int4"),
        ("wanda-2-4,method=gptq", [], 2, "method=gptq"),
        ("int4-gptq", [], 2, "--data is missing"),
        ("int4-gptq", ["--data", "{short}"], 7, "has 7 tokens, fewer than a row of length=32"),
        ("int4-gptq", ["--data", "{home}/nowhere.txt"], 7, "nowhere.txt"),
        ("int8", ["--data", "{short}"], 2, "--data has no effect"),
        ("int8,keep=[layers/atn/q]", [], 2, "keep='layers/atn/q' matches no parameter"),
        ("int8,rows=4", [], 2, "rows=4 has no effect with a recipe that looks at no text"),
        ("int4,damping=0.1", [], 2, "damping=0.1 has no effect with method=round"),
        ("wanda-2-4,sparsity=0.7", [], 2, "sparsity=0.7 has no effect with prune=wanda, pattern"),
        ("{home}/my.yaml", [], 2, "changes nothing"),
        ("{home}/typo.yaml", [], 2, "typo.yaml: unknown key 'recipe.methdo'"),
        ("int8,heads=9", ["--data", "{short}"], 2, "heads=9 must be from 1 to the 4"),
        ("tables=int8,keep=[layers/attn/q]", [], 2, "has no effect with format=plain and"),
        ("w8a8,strength=1.5", [], 2, "strength=1.5 must be at least 0 and at most 1"),
        ("prune=wanda,sparsity=0.0", [], 2, "sparsity=0.0 must be greater than 0"),
        ("list", [], 2, "--out and --data have no effect with --recipe list"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    home, capsys, recipe, words, code, said, tmp_path
):
    (home / "my.yaml").write_text("format: plain\n")
    (home / "typo.yaml").write_text("format: int4\nmethdo: gptq\n")
    (tmp_path / "short.txt").write_text("short")
    places = {"home": home, "short": tmp_path / "short.txt"}
    words = [word.format(**places) for word in ["--recipe", recipe, *words]]
    out = tmp_path / "out"
    assert main(["compress", str(home / "model"), *words, "--out", str(out)]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert not out.exists() and not list(tmp_path.glob("out.parts*"))


def test_a_model_that_is_quantised_already_is_refused(home, model, tmp_path, capsys):
    config, params = model
    done = {**tree.flatten(params)}
    write.compress_layers(params, config, PRESETS["int8"], None, tmp_path / "p")
    write.assemble(done, config, PRESETS["int8"], tmp_path / "p")
    with pytest.raises(ConfigError, match="quantised or adapted already"):
        layerwise.check_model(config, tree.unflatten(done))
    with pytest.raises(ConfigError, match="another recipe; remove it"):
        write.compress_layers(params, config, PRESETS["nf4"], None, tmp_path / "p")
    with pytest.raises(ConfigError, match=r"experts\.number=4"):
        experts = config.replace(experts=config.experts.__class__(number=4, active=2))
        layerwise.check_model(experts, params)


def test_a_recipe_keeps_what_it_is_told_to_keep(model):
    config, params = model
    recipe = Recipe(format="int8", keep=("layers/attn/*",))
    site = layerwise.layer_sites(config, 0)["feed/down"]
    assert recipe.changes("layers/feed/down") and not recipe.changes("layers/attn/q")
    result = matrix.compress_matrix(params["layers"]["feed"]["down"][0], site, recipe, None)
    assert 0 < result.error == result.nearest < 1e-4
    assert read_recipe("int4,group=32")[1].group == 32


BASES = {
    "round": {"format": "int4", "group": 32},
    "gptq": {"format": "int4", "group": 32, "method": "gptq"},
    "smooth": {"format": "int8", "method": "smoothquant"},
    "zeros": {"prune": "sparsegpt", "sparsity": 0.25},
}


@pytest.mark.parametrize(
    ("base", "change"),
    [("round", {"format": "int8"}), ("round", {"group": None}), ("round", {"symmetric": False}),
     ("round", {"method": "gptq"}), ("round", {"method": "awq"}), ("gptq", {"act_order": False}),
     ("gptq", {"damping": 0.5}), ("smooth", {"strength": 0.9}), ("smooth", {"activations": "int8"}),
     ("zeros", {"damping": 0.5}), ("zeros", {"prune": "wanda"}), ("zeros", {"prune": "magnitude"}),
     ("zeros", {"sparsity": 0.75}), ("zeros", {"pattern": "4:8", "sparsity": 0.5})],
)  # fmt: skip
def test_each_key_of_a_recipe_changes_a_matrix(model, inputs, base, change):
    weight, site = model[1]["layers"]["feed"]["down"][0], layerwise.layer_sites(model[0], 0)
    one, other = (
        matrix.compress_matrix(weight, site["feed/down"], Recipe(**keys), inputs)
        for keys in (BASES[base], BASES[base] | change)
    )
    same = jax.tree.structure(one.leaf) == jax.tree.structure(other.leaf)
    assert not same or one.error != other.error


def test_smaller_shapes_and_int8_go_together(home, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    recipe = "heads=2,channels=32,layers=1,format=int8,tables=int8,rows=4,length=16"
    words = ["--recipe", recipe, "--data", str(home / "text.txt"), "--out", str(home / "cut")]
    assert main(["compress", str(home / "model"), *words]) == 0
    config, params = jaxgen.load(home / "cut")
    assert (config.layers, config.heads, config.F, config.H) == (1, 2, 32, CONFIG.H)
    assert params["layers"]["feed"]["up"].values.shape == (1, 32, 64)
    receipt = json.loads((home / "cut" / "compress.json").read_text())
    assert receipt["calibration"] == {"rows": 4, "length": 16}
    assert receipt["name"] == recipe and receipt["bytes"][0] > 4 * receipt["bytes"][1]


def test_other_layouts_hold_the_numbers_that_the_folder_stands_for(home, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    monkeypatch.setattr("jaxgen.pretrained.hub_parity.can_compare", lambda: False)
    recipe = "int4-awq,group=32,rows=4,length=16"
    words = ["--recipe", recipe, "--data", str(home / "text.txt"), "--out", str(home / "int4")]
    assert main(["compress", str(home / "model"), *words]) == 0
    targets = {"hub": ["--to", "hf"], "model.gguf": ["--dtype", "float32"]}
    for target, to in targets.items():
        assert main(["convert", str(home / "int4"), str(home / target), *to]) == 0
        said = f"quantised numbers of {home / 'int4'} are written in full"
        assert said in capsys.readouterr().out
    folders = map(jaxgen.load, (home / name for name in ("int4", *targets)))
    own, *others = (jaxgen.apply(p, c, TOKENS).logits for c, p in folders)
    for other in others:
        np.testing.assert_allclose(other, own, atol=1e-4)


def test_a_compressed_model_writes_text_and_is_evaluated(home, monkeypatch, capsys):
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    out = str(home / "writes")
    assert main(["compress", str(home / "model"), "--recipe", "int4,group=32", "--out", out]) == 0
    capsys.readouterr()
    assert main(["generate", out, "--prompt", "2 times", "--max-new-tokens", "4"]) == 0
    assert main(["eval", out, f"data.files={home / 'text.txt'}"]) == 0
    said = capsys.readouterr().out
    assert "2 times" in said and "bits per byte" in said
    for words in (["eval", out], ["explain", out, "--prompt", "2", "--memory"]):
        assert main(words) == 2
        assert f"(it was compressed from {home / 'model'})" in capsys.readouterr().err


def test_a_part_that_is_damaged_is_made_anew(model, tmp_path):
    config, params = model
    said: list[str] = []
    for _ in range(2):
        write.compress_layers(params, config, PRESETS["int4"], None, tmp_path, say=said.append)
    assert len(said) == config.layers
    part = tmp_path / "layer-0001.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    write.compress_layers(params, config, PRESETS["int4"], None, tmp_path, say=said.append)
    assert said[config.layers :] == [said[-1]] and said[-1].startswith("layer 2 of 2")
    assert part.read_bytes() == whole
