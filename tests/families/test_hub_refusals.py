"""Every unsound Hugging Face folder is refused: code 4, one line, nothing written."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_params import random_params
from safetensors.numpy import load_file, save_file

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError
from jaxgen.models.families import FAMILIES
from jaxgen.store import safetensors

SIZES = {"vocab_size": 11, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1}
CONFIG = SIZES | {"model_type": "llama", "num_attention_heads": 2, "max_position_embeddings": 8}
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def weights():
    config = jaxgen.ModelConfig(
        vocab_size=11,
        context=8,
        layers=1,
        d_model=4,
        heads=2,
        d_ff=6,
        norm="rms",
        positions="rope",
        feed="swiglu",
        biases="none",
        output="untied",
    )
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        params = jaxgen.init(config, jax.random.key(0))
        jaxgen.save(Path(home) / "hub", config, params, layout="hf", family="llama")
        return load_file(Path(home) / "hub" / "model.safetensors")


@pytest.fixture
def folder(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights, hub / "model.safetensors")
    return hub


def config(**changes):
    def damage(hub, weights):
        kept = {k: v for k, v in (CONFIG | changes).items() if v != "absent"}
        (hub / "config.json").write_text(json.dumps(kept))

    return damage


def content(raw, name="config.json"):
    return lambda hub, weights: (hub / name).write_bytes(raw)


def tensors(change):
    def damage(hub, weights):
        save_file(change(dict(weights)), hub / "model.safetensors")

    return damage


def without(name):
    return tensors(lambda w: {k: v for k, v in w.items() if k != name})


def renamed(old, new):
    return tensors(lambda w: {new if k == old else k: v for k, v in w.items()})


def replaced(name, change):
    return tensors(lambda w: w | {name: change(w[name]) if name in w else change(w[Q])})


def header(change):
    """Rewrite the header as `change` wants it, the bytes behind it left as they are."""

    def damage(hub, weights):
        path = hub / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        head = change(json.loads(raw[8 : 8 + length]))
        head = head if isinstance(head, bytes) else json.dumps(head).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + length :])

    return damage


def entry(**changes):
    return header(lambda h: h | {Q: h[Q] | changes})


def length(number):
    def damage(hub, weights):
        path = hub / "model.safetensors"
        path.write_bytes(number.to_bytes(8, "little") + path.read_bytes()[8:])

    return damage


def cut(hub, weights):
    path = hub / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def longer(hub, weights):
    path = hub / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"12345")


def pickled(hub, weights):
    (hub / "model.safetensors").rename(hub / "pytorch_model.bin")


def sharded(change):
    def damage(hub, weights):
        (hub / "model.safetensors").unlink()
        names = sorted(weights)
        parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
        for shard, inside in parts.items():
            save_file({n: weights[n] for n in inside}, hub / shard)
        where = {n: shard for shard, inside in parts.items() for n in inside}
        index = hub / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": change(hub, where, weights) or where}))

    return damage


def twice(hub, where, weights):
    name = next(n for n, shard in where.items() if shard == "a.safetensors")
    inside = {n: weights[n] for n, shard in where.items() if shard == "b.safetensors"}
    save_file(inside | {name: weights[name]}, hub / "b.safetensors")


M = "model.safetensors"
CASES = {
    "empty config": (content(b""), "config.json is empty"),
    "config no json": (content(b"{oops"), "config.json is no model config"),
    "config no object": (content(b"[1]"), "no JSON object"),
    "config key twice": (content(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "config depth bomb": (content(b"[" * 100_000), "nested too deeply"),
    "config of 2 MB": (content(b" " * (2 << 20)), "more than the 1.0 MiB"),
    "config an LFS pointer": (content(b"version https://git-lfs.github.com/spec/v1"), "git lfs"),
    "unknown family": (config(model_type="lama"), "(did you mean 'llama'?); known are gpt2, llama"),
    "images": (config(model_type="vit", image_size=224), "reads images, and no family of these is"),
    "no family": (config(model_type="absent"), "known are gpt2, llama"),
    "unknown architecture": (config(architectures=["LlamaForX"]), "LlamaForX"),
    "missing size": (config(hidden_size="absent"), "'hidden_size' is missing"),
    "size a string": (config(hidden_size="4"), "hidden_size='4' is no number"),
    "size a float": (config(hidden_size=4.5), "4.5"),
    "size negative": (config(num_hidden_layers=-1), "num_hidden_layers=-1 must be"),
    "size zero": (config(num_attention_heads=0), "num_attention_heads=0 must be"),
    "size null": (config(vocab_size=None), "config.json: vocab_size=None is no number"),
    "width null": (config(intermediate_size=None), "intermediate_size=None is no number"),
    "heads that don't divide": (
        config(num_attention_heads=3),
        "hidden_size=4 is not a multiple of num_attention_heads=3; nearest that work: "
        "num_attention_heads=2 or 4, or set head_dim"),
    "key heads that don't divide": (
        config(num_key_value_heads=3), "num_attention_heads=2 is not a multiple of num_key_value"),
    "epsilon 0": (config(rms_norm_eps=0.0), "rms_norm_eps=0.0 must be greater than 0"),
    "base of waves below 0": (config(rope_theta=-1.0), "rope_theta=-1.0 must be greater than 0"),
    "factor of waves below 0": (
        config(rope_scaling={"rope_type": "linear", "factor": -2.0}), "rope_scaling.factor=-2.0"),
    "dropout above 1": (config(attention_dropout=2.0), "attention_dropout=2.0 is no chance"),
    "dropout a text": (config(classifier_dropout="0.1"), "classifier_dropout='0.1' is no chance"),
    "an id a word": (config(eos_token_id="</s>"), "eos_token_id='</s>' is no id"),
    "ids with a word": (config(eos_token_id=[1, "</s>"]), "eos_token_id=[1, '</s>'] is no id"),
    "no config": (
        lambda hub, w: (hub / "config.json").unlink(),
        "hub has model.safetensors but no config.json"),
    "a billion layers": (config(num_hidden_layers=10**9), "more than the 1000"),
    "huge vocabulary": (config(vocab_size=10**12), "more than the 20000000"),
    "rope a list": (config(rope_scaling={"rope_type": []}), "rope_type=[] is not known here"),
    "a class a list": (config(architectures=[[1]]), "architectures=[[1]] is not known here"),
    "bogus rope": (config(rope_scaling={"rope_type": "magic"}), "rope_type='magic' is not known"),
    "rope lacks": (config(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "lacks"),
    "unknown activation": (config(hidden_act="sine"), "hidden_act='sine' is not known"),
    "setting of other models": (
        config(residual_multiplier=0.2), "residual_multiplier=0.2 is not known for llama"),
    "part of each head": (config(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    "quantised": (config(quantization_config={"bits": 4}), "quantised weights are not read"),
    "quantised by MLX": (config(quantization={"bits": 4}), "quantised weights are not read"),
    "other sizes than the weights": (config(intermediate_size=7), "of another shape"),
    "no weights": (lambda hub, w: (hub / M).unlink(), "neither model.safetensors nor"),
    "pickle": (pickled, "pytorch_model.bin: pickle is not read"),
    "pickle as safetensors": (content(b"PK\x03\x04" + b"x" * 40, M), "is a pickle under another"),
    "weights empty": (content(b"", M), "is empty"),
    "weights of 3 bytes": (content(b"abc", M), "has 3 bytes"),
    "weights an LFS pointer": (content(b"version https://git-lfs.github.com/spec/v1", M), "lfs"),
    "weights a web page": (content(b"<!DOCTYPE html><html>", M), "web page"),
    "header of 2^63": (length(2**63), "9223372036854775808 bytes but the file"),
    "header of 2^40": (length(2**40), "1099511627776 bytes but the file"),
    "header cut short": (length(9), "its header is no JSON"),
    "header no json": (header(lambda h: b"{oops"), "its header is no JSON"),
    "header not utf-8": (header(lambda h: b'{"\xff": 1}'), "is not UTF-8"),
    "header too deep": (header(lambda h: b"[" * 100_000), "nested too deeply"),
    "header a list": (header(lambda h: [1]), "no JSON object"),
    "header key twice": (header(lambda h: b'{"a": {}, "a": {}}'), "'a' is there twice"),
    "metadata of numbers": (header(lambda h: h | {"__metadata__": {"a": 1}}), "__metadata__"),
    "unknown dtype": (entry(dtype="F12"), "unknown dtype 'F12'"),
    "shape negative": (entry(shape=[-4, 4]), "impossible shape"),
    "shape overflows": (entry(shape=[2**62, 2**62]), "are said to hold it"),
    "shape lies": (entry(shape=[4, 5]), "64 bytes are said to hold it"),
    "begin after end": (entry(data_offsets=[64, 0]), "impossible data_offsets"),
    "past the end": (entry(data_offsets=[10**6, 10**6 + 64]), "hole"),
    "overlap": (entry(data_offsets=[0, 64]), "overlaps another"),
    "truncated": (cut, "it is truncated"),
    "trailing bytes": (longer, "bytes that belong to no tensor"),
    "missing tensor": (without(Q), f"1 missing: {Q}"),
    "misnamed tensor": (renamed(Q, Q.replace("q_", "qq_")), f"{Q} (is it '"),
    "extra tensor": (tensors(lambda w: w | {"extra": w[Q]}), "1 unknown: extra"),
    "misshapen tensor": (replaced(Q, lambda a: a[:2].copy()), f"{Q} is [2, 4], not [4, 4]"),
    "integers": (replaced(Q, lambda a: a.astype(np.int8)), "is I8; quantised"),
    "NaN": (replaced(Q, lambda a: a * np.nan), "holds NaN or infinity"),
    "infinity": (replaced(Q, lambda a: a + np.inf), "holds NaN or infinity"),
    "minus infinity": (replaced(Q, lambda a: a - np.inf), "holds NaN or infinity"),
    "missing shard": (
        sharded(lambda hub, *_: (hub / "b.safetensors").unlink()), "b.safetensors is missing"),
    "shard elsewhere": (
        sharded(lambda hub, w, _: dict.fromkeys(w, "../x.safetensors")), "'../x."),
    "tensor in two shards": (sharded(twice), "is in another shard as well"),
    "index names what is not there": (
        sharded(lambda hub, w, _: w | {"more": "a.safetensors"}), "lacks 'more'"),
    "index without a map": (content(b"{}", "model.safetensors.index.json"), "weight_map"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "part"), CASES.values(), ids=CASES)
def test_an_unsound_folder_is_refused(folder, weights, capsys, damage, part):
    damage(folder, weights)
    before = sorted(Path().rglob("*"))
    code = app.main(["convert", "hub", "out", "--to", "jaxgen"])
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("jaxgen: error: ")]
    assert (code, len(lines)) == (4, 1), lines
    assert part in lines[0], lines[0]
    assert sorted(Path().rglob("*")) == before


def test_the_sound_folder_is_taken_and_code_of_a_model_is_ignored_with_notice(folder, weights):
    config(auto_map={"AutoModel": "evil.Model"})(folder, weights)
    (folder / "evil.py").write_text("open('canary', 'w')")
    with pytest.warns(UserWarning, match="auto_map is ignored"):
        jaxgen.load(folder)
    assert not Path("canary").exists()
    assert "evil" not in sys.modules


def test_two_tables_that_differ_are_both_read_whatever_is_said_of_them(folder, weights):
    config(tie_word_embeddings=True)(folder, weights)
    with pytest.warns(UserWarning, match="'lm_head.weight' is 'model.embed_tokens.weight', but"):
        found, params = jaxgen.load(folder)
    assert found.output == "untied"
    np.testing.assert_array_equal(params["unembed"]["tokens"], weights["lm_head.weight"])
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, folder / M)
    assert jaxgen.load(folder)[0].output == "tied"


def test_settings_that_nobody_reads_are_named_in_one_warning(folder, weights):
    plain = jaxgen.load(folder)[0]
    neutral = {"_model_name_or_path": "x", "unk_token_id": 3, "_num_labels": 3, "torchscript": True}
    config(hiden_act=7, sliding_window_size=3, name="x", use_bfloat16=False, **neutral)(
        folder, weights
    )
    with pytest.warns(UserWarning) as told:
        assert jaxgen.load(folder)[0] == plain
    assert len(told) == 1
    message = str(told[0].message)
    assert "hiden_act=7 (did you mean 'hidden_act'?)" in message
    assert "sliding_window_size=3, name='x'" in message
    assert not [key for key in ("use_bfloat16", *neutral) if key in message]


ODD = [
    ("modernbert", {"local_attention": 7}, "local_attention=7 (odd: 3 tokens on each side"),
    ("modernbert", {"classifier_pooling": "x"}, "classifier_pooling='x' is not known here"),
    ("llama", {"eos_token_id": [3, 99]}, "eos_token_id=[3, 99] (its vocabulary has 11 ids)"),
    ("llama", {"torch_dtype": "float12"}, "torch_dtype='float12'"),
    ("llama", {"eos_token_id": 3, "pad_token_id": -1, "torch_dtype": "bfloat16"}, None),
]


def test_a_setting_that_only_others_are_made_of_is_named_where_it_is_missing():
    with pytest.raises(CheckpointError, match="'max_position_embeddings' is missing"):
        FAMILIES["roberta"].read(SIZES | {"num_attention_heads": 2})


def test_a_size_that_two_settings_make_is_told_with_both():
    theirs = SIZES | {"num_attention_heads": 2, "max_position_embeddings": 2, "pad_token_id": 1}
    with pytest.raises(CheckpointError) as error:
        FAMILIES["roberta"].read(theirs)
    told = "max_position_embeddings=2 with pad_token_id=1 (here 0) must be at least 2"
    assert told in str(error.value)


@pytest.mark.parametrize("keys", [{"num_hidden_groups": 2}, {"inner_group_num": 1001},
                                  {"num_hidden_groups": 0}, {"inner_group_num": "2"}])  # fmt: skip
def test_groups_that_no_layers_can_share_are_refused(keys):
    theirs = SIZES | {"num_attention_heads": 2, "max_position_embeddings": 8}
    with pytest.raises(CheckpointError, match=f"{next(iter(keys))}={next(iter(keys.values()))!r}"):
        FAMILIES["albert"].read(theirs | keys)


@pytest.mark.parametrize(("family", "keys", "part"), ODD)
def test_values_that_mean_something_else_or_nothing_are_named(family, keys, part):
    theirs, family = SIZES | keys, FAMILIES[family]
    told = ", ".join(family.ignored_settings(theirs) + family.odd_settings(theirs))
    assert told.startswith(part) if part else not told


@pytest.mark.parametrize(
    ("named", "kept"), [({}, "float32"), ({"torch_dtype": "float16"}, "float16"),
                        ({"dtype": "bfloat16"}, "float32")]
)  # fmt: skip
def test_weights_of_two_dtypes_are_read_as_config_json_says_or_exactly(
    folder, weights, named, kept
):
    config(**named)(folder, weights)
    replaced(Q, lambda a: a.astype(np.float16))(folder, weights)
    with pytest.warns(UserWarning, match=f"is float16; all are read as {kept}"):
        read, params = jaxgen.load(folder)
    assert read.param_dtype == kept
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {kept}
    assert jaxgen.load(folder, dtype="bfloat16")[0].param_dtype == "bfloat16"


def test_t5_of_half_numbers_is_computed_in_float32(tmp_path):
    sizes = {"vocab_size": 11, "context": 8, "layers": 1, "d_model": 4, "heads": 2, "d_ff": 6}
    t5 = {"topology": "encoder_decoder", "norm": "rms", "positions": "relative", "feed": "relu"}
    made = jaxgen.ModelConfig(
        **sizes, **t5, biases="none", query_scalar=1.0, param_dtype="float16", output_scale="root"
    )
    params = random_params(made)
    params["layers"]["feed"]["up"] *= 3e4  # beyond the range of float16, once multiplied
    jaxgen.save(tmp_path / "hub", made, params, layout="hf", family="t5")
    read, params = jaxgen.load(tmp_path / "hub")
    assert (read.param_dtype, read.compute_dtype) == ("float16", "float32")
    ids = np.arange(8)[None]
    memory = jaxgen.encode(params, read, ids)
    assert np.isfinite(jaxgen.apply(params, read, ids, memory=memory).logits).all()
    plain = jaxgen.load(tmp_path / "hub", dtype="float32")[0]
    assert (plain.param_dtype, plain.compute_dtype) == ("float32", "float32")


def test_many_files_with_an_index_are_the_same_as_one(folder, weights):
    one = jaxgen.load(folder)
    sharded(lambda *_: None)(folder, weights)
    many = jaxgen.load(folder)
    jax.tree.map(np.testing.assert_array_equal, one[1], many[1])


def test_a_tokenizer_larger_than_the_vocabulary_is_taken_until_an_id_is_needed(folder, capsys):
    tokenizer = {"model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(12)}}}
    tokenizer["model"]["unk_token"], tokenizer["added_tokens"] = "w0", []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert app.main(["convert", "hub", "out", "--to", "jaxgen"]) == 0
    capsys.readouterr()
    assert app.main(["generate", "hub", "--prompt", "w11", "--max-new-tokens", "1"]) != 0
    assert "w11" in capsys.readouterr().err


def test_a_cast_is_explicit_and_refuses_overflow(folder, weights):
    assert jaxgen.load(folder)[0].param_dtype == "float32"
    config, params = jaxgen.load(folder, dtype="bfloat16")
    assert (config.param_dtype, str(params["embed"]["tokens"].dtype)) == ("bfloat16",) * 2
    save_file(weights | {Q: weights[Q] + 1e6}, folder / M)
    with pytest.raises(CheckpointError, match="overflows as float16"):
        jaxgen.load(folder, dtype="float16")


def test_a_target_that_is_not_empty_is_refused(folder, capsys):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    for target in ("out", "hub"):
        assert app.main(["convert", "hub", target, "--to", "hf"]) == 2
        assert "exists already" in capsys.readouterr().err


def test_tensors_are_placed_as_the_shardings_say(folder):
    mesh = jax.make_mesh((1,), ("x",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jaxgen.abstract(jaxgen.load(folder)[0])
    _, params = jaxgen.load(folder, shardings=jax.tree.map(lambda _: spec, shapes))
    assert all(leaf.sharding == spec for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, jaxgen.load(folder)[1])


def test_our_writer_makes_what_the_library_reads(tmp_path):
    import jax.numpy as jnp

    arrays = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.arange(5.0, dtype=np.float32),
        "scalar": np.asarray(jnp.bfloat16(2)),
        "empty": np.zeros((0, 3), np.float32),
    }
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    safetensors.write_safetensors(tmp_path / "f", shapes, arrays.__getitem__, {"format": "pt"})
    theirs, ours = load_file(tmp_path / "f"), safetensors.open_file(tmp_path / "f")
    assert theirs.keys() == ours.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(safetensors.read_tensor(ours[name]), array)


TOWER = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
         "max_position_embeddings": 8}  # fmt: skip
TWO = {"model_type": "t5gemma", "vocab_size": 11, "encoder": TOWER, "decoder": TOWER}
ONE_KIND = {"layer_types": ["sliding_attention"] * 2}
PARTS = {
    "none of a size": ({"encoder": {k: v for k, v in TOWER.items() if k != "hidden_size"}},
                       "'encoder.hidden_size' is missing"),
    "no size": ({"encoder": TOWER | {"hidden_size": "8"}}, "encoder.hidden_size='8' is no number"),
    "none": ({"encoder": TOWER | {"intermediate_size": 0}}, "encoder.intermediate_size=0 must be"),
    "odd heads": ({"encoder": TOWER | {"num_attention_heads": 3}}, "of the encoder: .*=3 is not"),
    "another scale": ({"encoder": TOWER | {"query_pre_attn_scalar": 7}},
                      "encoder.query_pre_attn_scalar=7 but decoder.query_pre_attn_scalar=None"),
    "kinds of the encoder": ({"encoder": TOWER | ONE_KIND}, "layer_types differ"),
    "kinds of the decoder": ({"decoder": TOWER | ONE_KIND}, "layer_types differ"),
    "alone, but named two": ({"is_encoder_decoder": False}, "is_encoder_decoder=False with"),
    "two, but named one": ({"architectures": ["T5GemmaEncoderModel"]}, "is_encoder_decoder=True"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "part"), PARTS.values(), ids=PARTS)
def test_towers_that_are_no_model_are_refused_by_the_part_they_stand_in(changes, part):
    with pytest.raises(CheckpointError, match=part):
        FAMILIES["t5gemma"].read(TWO | changes)


def test_a_config_is_not_written_where_its_encoder_would_be_read_otherwise():
    family = FAMILIES["t5gemma"]
    config = family.read(TWO | {"encoder": TOWER | {"head_dim": 6, "num_hidden_layers": 3}})
    parts = family.write(config)
    assert (parts["encoder"]["head_dim"], parts["decoder"]["head_dim"]) == (6, 4)
    scores = jaxgen.Scores(cap=config.scores.cap)  # each tower's scores by the width of its heads
    with pytest.raises(CheckpointError, match=r"no encoder with scores\.query_scalar=6"):
        family.write(config.replace(scores=scores))
    with pytest.raises(CheckpointError, match="has no encoder with pattern"):
        family.write(config.replace(layers=1))
    alone = family.write(config.encoder())["encoder"]
    assert (alone["head_dim"], alone["sliding_window"]) == (6, parts["encoder"]["sliding_window"])
