"""A folder of sentence-transformers makes its vectors as its modules.json says."""

import dataclasses
import json

import numpy as np
import published_poolings as published
import pytest
import test_laid
from safetensors.numpy import save_file

import jaxgen
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.pretrained import pooling
from jaxgen.text import tasks

TEXTS = ["a b c", "c"]
FIELDS = test_laid.ENCODER | {"output_bias": "none", "head": "none"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    home = tmp_path_factory.mktemp("plain")
    return test_laid.folder(home, "[CLS] $A [SEP]", {}, "bert", **FIELDS)


@pytest.fixture
def home(plain, tmp_path):
    """A copy of the folder, to which modules can be added."""
    for path in plain.home.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", published.ROWS)
def test_published_folders_are_read(home, name):
    kinds, keys, files, told = published.ROWS[name]
    keys, dense = dict(keys), keys.get("Dense", {})
    keys.pop("Dense", None)
    write(home, *kinds, Pooling=keys, Dense={"in_features": 8, "out_features": 8, **dense})
    weights = {"linear.weight": np.ones((8, 8), np.float32)}
    weights |= {"linear.bias": np.ones(8, np.float32)} if dense.get("bias") else {}
    for path in home.glob("*_Dense"):
        save_file(weights, path / "model.safetensors")
    for file, about in files.items():
        (home / file).write_text(json.dumps(about))
    found = pooling.read_pooling(home)
    assert {key: getattr(found, key) for key in told} == told
    assert len(found.modes) == 1 and len(found.after) == len(kinds) - 1
    for prompt, text in files.get(published.PROMPTS, {}).get("prompts", {}).items():
        assert found.prompt(prompt) == text


@pytest.mark.parametrize("name", published.REFUSED)
def test_published_folders_of_other_kinds_are_refused_by_name(home, name):
    first, told = published.REFUSED[name]
    write(home, "Pooling", Pooling=published.OLD_MEAN)
    path = home / "modules.json"
    text = path.read_text().replace("sentence_transformers.models.Transformer", first, 1)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=told):
        pooling.read_pooling(home)


def write(home, *kinds, **files):
    at = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{at}Transformer"}]
    for number, kind in enumerate(kinds, 1):
        path = f"{number}_{kind}"
        (home / path).mkdir()
        modules.append({"idx": number, "path": path, "type": f"{at}{kind}"})
        if kind in files:
            (home / path / "config.json").write_text(json.dumps(files[kind]))
    (home / "modules.json").write_text(json.dumps(modules))


def opened(plain, home):
    return dataclasses.replace(plain, home=home)


def states(plain):
    rows = [plain.ids(text) for text in TEXTS]
    return [
        np.asarray(jaxgen.apply(plain.params, plain.config, np.array([row])).hidden[0])
        for row in rows
    ]


HOW = {
    "mean": ("pooling_mode_mean_tokens", lambda x: x.mean(0)),
    "cls": ("pooling_mode_cls_token", lambda x: x[0]),
    "last": ("pooling_mode_lasttoken", lambda x: x[-1]),
    "max": ("pooling_mode_max_tokens", lambda x: x.max(0)),
    "root_mean": ("pooling_mode_mean_sqrt_len_tokens", lambda x: x.sum(0) / len(x) ** 0.5),
    "weighted_mean": (
        "pooling_mode_weightedmean_tokens",
        lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
    ),
}


@pytest.mark.parametrize("mode", HOW)
def test_each_pooling_is_followed(plain, home, mode):
    key, how = HOW[mode]
    keys = dict.fromkeys((k for k, _ in HOW.values()), False) | {key: True}
    write(home, "Pooling", Pooling=keys | {"word_embedding_dimension": 8, "include_prompt": True})
    found = tasks.embed(opened(plain, home), TEXTS, batch=2)
    np.testing.assert_allclose(found, [how(x) for x in states(plain)], atol=1e-5)


def test_what_follows_the_pooling_is_followed_in_turn(plain, home):
    write(home, "Pooling", "Dense", "Normalize", Pooling={"pooling_mode": "cls"},
          Dense={"in_features": 8, "out_features": 3,
                 "activation_function": "torch.nn.modules.activation.Tanh"})  # fmt: skip
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(3, 8)).astype(np.float32)
    bias = draw.normal(size=3).astype(np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, home / "2_Dense/model.safetensors")
    wanted = np.tanh(np.stack([x[0] for x in states(plain)]) @ weight.T + bias)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = tasks.embed(opened(plain, home), TEXTS, batch=2)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_length_and_prompt_are_followed(plain, home):
    write(home, "Pooling", Pooling={"pooling_mode_mean_tokens": True})
    (home / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": true}')
    about = {"prompts": {"query": "B "}, "default_prompt_name": "query"}
    (home / "config_sentence_transformers.json").write_text(json.dumps(about))
    model = opened(plain, home)
    short, prompted = tasks.embed(model, ["A", "a"]), tasks.embed(plain, ["b a", "b a"])
    np.testing.assert_allclose(short, prompted, atol=1e-6)
    with pytest.raises(ConfigError, match="has 6 tokens, more than"):
        tasks.embed(model, ["a b c"])
    with pytest.warns(UserWarning, match="cut to 5 tokens"):
        cut = tasks.embed(model, ["a b c"], overflow="cut")
    np.testing.assert_allclose(cut, tasks.embed(plain, ["b a b"]), atol=1e-6)


def test_several_poolings_are_joined(plain, home):
    write(home, "Pooling", Pooling=dict.fromkeys((k for k, _ in HOW.values()), True))
    order = ("cls", "max", "mean", "root_mean", "weighted_mean", "last")
    wanted = [np.concatenate([HOW[mode][1](x) for mode in order]) for x in states(plain)]
    np.testing.assert_allclose(tasks.embed(opened(plain, home), TEXTS), wanted, atol=1e-5)
    (home / "1_Pooling/config.json").write_text('{"pooling_mode": ["lasttoken", "cls"]}')
    wanted = [np.concatenate([x[-1], x[0]]) for x in states(plain)]
    np.testing.assert_allclose(tasks.embed(opened(plain, home), TEXTS), wanted, atol=1e-5)


def test_no_pooling_that_is_on_is_a_mean(plain, home):
    write(home, "Pooling", Pooling={"pooling_mode_cls_token": False})
    np.testing.assert_array_equal(
        tasks.embed(opened(plain, home), TEXTS), tasks.embed(plain, TEXTS)
    )


@pytest.mark.parametrize("mode", HOW)
def test_a_prompt_is_asked_for_by_name_and_need_not_be_pooled(plain, home, mode):
    write(home, "Pooling", Pooling={HOW[mode][0]: True, "include_prompt": False})
    about = {"prompts": {"query": "b c "}, "default_prompt_name": "document"}
    (home / "config_sentence_transformers.json").write_text(json.dumps(about))
    model = opened(plain, home)
    row = np.array([plain.ids("b c a")])
    state = np.asarray(jaxgen.apply(plain.params, plain.config, row).hidden[0])
    wanted = HOW[mode][1](state[3:])
    if mode == "weighted_mean":
        wanted = np.average(state[3:], axis=0, weights=[4, 5])
    found = tasks.embed(model, ["a"], prompt_name="query")
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    assert np.abs(tasks.embed(model, ["a"]) - found).max() > 1e-3  # its own default is empty
    with pytest.raises(ConfigError, match=r"qeury is no .*did you mean 'query'.* query, document"):
        tasks.embed(model, ["a"], prompt_name="qeury")


def test_modules_of_newer_releases_are_followed(plain, home):
    write(home, "Pooling", "Dropout", "LayerNorm", "Dense", Pooling={"pooling_mode": "cls"},
          Dense={"activation_function": "torch.nn.modules.activation.ReLU", "use_residual": True,
                 "module_input_name": "sentence_embedding"})  # fmt: skip
    draw = np.random.default_rng(0)
    norm = {f"norm.{key}": draw.normal(size=8).astype(np.float32) for key in ("weight", "bias")}
    dense = {f"{key}.weight": draw.normal(size=(3, 8)).astype(np.float32)
             for key in ("linear", "residual")}  # fmt: skip
    save_file(norm, home / "3_LayerNorm/model.safetensors")
    save_file(dense, home / "4_Dense/model.safetensors")
    (home / "config_sentence_transformers.json").write_text('{"truncate_dim": 2}')
    x = np.stack([x[0] for x in states(plain)])
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * norm["norm.weight"] + norm["norm.bias"]
    wanted = np.maximum(x @ dense["linear.weight"].T, 0) + x @ dense["residual.weight"].T
    found = tasks.embed(opened(plain, home), TEXTS)
    np.testing.assert_allclose(found, wanted[:, :2], atol=1e-4)


SETTINGS = {
    "sentence_bert_config.json": [
        ({"transformer_task": "fill-mask"}, "transformer_task='fill-mask' is not known"),
        ({"query_expansion": {"length": 32}}, "query_expansion="),
        ({"modality_config": {"message": {}}}, "modality_config="),
        (
            {"tokenizer_args": {"padding_side": "left", "sep_token": "x"}},
            "sep_token in tokenizer_a",
        ),
        ({"max_seq_length": "long"}, "max_seq_length is 'long', no number of tokens"),
    ],
    "config_sentence_transformers.json": [
        ({"default_prompt_name": "task"}, "default_prompt_name='task' has no prompt"),
        ({"prompts": {"query": 3}}, "are not names and texts"),
        ({"truncate_dim": 0}, "truncate_dim=0 is no number"),
    ],
    "2_Dense/config.json": [
        ({"activation_function": "torch.nn.modules.activation.Softmin"}, "Softmin is not known"),
        ({"activation_function": "mine.ReLU"}, "activation_function=mine.ReLU"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings'"),
        ({}, "has no model.safetensors"),
    ],
}


@pytest.mark.parametrize(
    ("name", "told", "part"), [(n, *case) for n, cases in SETTINGS.items() for case in cases]
)
def test_a_setting_that_is_not_followed_is_refused_by_name(home, name, told, part):
    write(home, "Pooling", "Dense", Pooling={"pooling_mode": "cls"}, Dense={})
    save_file({"linear.weight": np.ones((3, 8), np.float32)}, home / "2_Dense/model.safetensors")
    if not told:
        (home / "2_Dense/model.safetensors").unlink()
    (home / name).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=part):
        pooling.read_pooling(home)


def test_code_of_a_model_is_not_run(home):
    write(home, "Pooling", Pooling={"pooling_mode": "cls"})
    path = home / "modules.json"
    text = path.read_text().replace(
        "sentence_transformers.models.Transformer", "custom_st.Transformer"
    )
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"custom_st\.Transformer is code of the model"):
        pooling.read_pooling(home)


REFUSED = {
    "module": (("Pooling", "LSTM"), {"pooling_mode": "cls"}, "LSTM is not known"),
    "mode": (("Pooling",), {"pooling_mode": ["cls", "attention"]}, "pooling_mode='attention'"),
    "newer key": (("Pooling",), {"pooling_mode_first": True}, "pooling_mode='pooling_mode_first'"),
    "no pooling": ((), {}, "has no Pooling"),
    "order": (("Normalize", "Pooling"), {"pooling_mode": "cls"}, "Normalize is not known"),
}  # fmt: skip


@pytest.mark.parametrize(("kinds", "told", "part"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_known_is_refused_by_embed_alone(plain, home, kinds, told, part):
    write(home, *kinds, Pooling=told)
    with pytest.raises(CheckpointError, match=part):
        tasks.embed(opened(plain, home), TEXTS)
    jaxgen.load(home)


def test_modules_are_looked_for_beside_the_model_alone(home):
    write(home, "Pooling", Pooling={"pooling_mode": "cls"})
    path = home / "modules.json"
    path.write_text(path.read_text().replace("1_Pooling", "../1_Pooling"))
    with pytest.raises(CheckpointError, match=r"'\.\./1_Pooling' is no folder beside it"):
        pooling.read_pooling(home)


def test_the_pooling_goes_along_when_a_folder_is_converted(home, monkeypatch, capsys):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    write(home, "Pooling", "Normalize", Pooling={"pooling_mode": "lasttoken"})
    for target, to in (("ours", "jaxgen"), ("theirs", "hf")):
        assert app.main(["convert", str(home), str(home / target), "--to", to]) == 0
        found = pooling.read_pooling(home / target)
        assert (found.modes, len(found.after)) == (("last",), 1)
