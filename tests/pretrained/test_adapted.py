"""Adapters named beside a model: found, scaled, added up, merged, or refused."""

import json

import numpy as np
import pytest
from random_params import random_params
from test_peft import MODELS, made

import jaxgen
from jaxgen import settings, settings_yaml, tree
from jaxgen.adapters.adapter import merge
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.families import FAMILIES
from jaxgen.pretrained import adapted, sources
from jaxgen.pretrained.adapted import words_of
from jaxgen.pretrained.peft_write import write_adapter
from jaxgen.store import gguf
from jaxgen.tokens.plain import Bytes

KINDS = {
    "one": {"kind": "lora", "rank": 2, "targets": ["*/q", "*/down"]},
    "two": {"kind": "lora", "rank": 3, "targets": ["*/o", "*/down"]},
    "dora": {"kind": "dora", "rank": 2, "targets": ["*/q"]},
    "ia3": {"kind": "ia3", "targets": ["*/k", "*/v"]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("adapted")
    for name, asked in KINDS.items():
        config, adapter = made("llama", asked)
        (home / name).mkdir()
        write_adapter(home / name, adapter, FAMILIES["llama"], config)
    config = config.replace(vocab_size=259)
    jaxgen.save(home / "base", config, random_params(config), layout="hf", tokenizer=Bytes())
    jaxgen.save(home / "ours", config, random_params(config), tokenizer=Bytes())
    return home


def change(home, adapter, base="base"):
    """What adapters add to the weights of the base, by path."""
    plain = tree.flatten(jaxgen.load(home / base)[1])
    config, params = jaxgen.load(home / base, adapter=adapter)
    return {path: leaf - plain[path] for path, leaf in tree.flatten(merge(params, config)).items()}


def test_adapters_add_up_by_their_scales(home):
    one, two = (change(home, home / name) for name in ("one", "two"))
    both = change(home, [f"{home / 'one'}=0.5", f"{home / 'two'}=-2"])
    for path, leaf in both.items():
        np.testing.assert_allclose(leaf, 0.5 * one[path] - 2 * two[path], atol=2e-5, err_msg=path)
    assert np.abs(both["layers/feed/down"]).max() > 0.1
    for path, leaf in change(home, home / "one", base="ours").items():
        np.testing.assert_allclose(leaf, one[path], atol=1e-6)


def test_an_adapter_that_names_its_base_is_a_model(home):
    path = home / "one" / "adapter_config.json"
    path.write_text(path.read_text().replace("org/base", str(home / "base")))
    config, params = jaxgen.load(home / "one")
    wanted = jaxgen.load(home / "base", adapter=home / "one")[1]
    logits = [jaxgen.apply(p, config, [[1, 2, 3]]).logits for p in (params, wanted)]
    np.testing.assert_array_equal(*logits)
    session = jaxgen.open(home / "one")
    assert session.generate("a", temperature=0.0, max_new_tokens=2) is not None


def test_an_adapter_of_a_gguf_base_is_one_of_the_folder_of_that_model(home, tmp_path, monkeypatch):
    config, adapter = made("llama", KINDS["one"])
    config, params = jaxgen.load(home / "base")
    jaxgen.save(tmp_path / "small.gguf", config, params, layout="gguf")
    about = {"model": settings.as_dict(config), "init_from": str(tmp_path / "small.gguf")}
    (tmp_path / "run").mkdir()
    text = settings_yaml.to_yaml(about | {"adapter": {"kind": "lora"}})
    (tmp_path / "run" / "config.yaml").write_text(text)
    monkeypatch.setattr(adapted, "read_for", lambda *words: adapter)
    adapted.write_peft(tmp_path / "run", tmp_path / "peft")
    monkeypatch.undo()
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert written["target_modules"] == ["down_proj", "q_proj"]
    assert written["base_model_name_or_path"] == "small"
    of_folder, of_file, first = (
        jaxgen.apply(jaxgen.load(base, adapter=one)[1], config, [[1, 2, 3]]).logits
        for base, one in (
            (home / "base", tmp_path / "peft"),
            (tmp_path / "small.gguf", tmp_path / "peft"),
            (home / "base", home / "one"),
        )
    )
    np.testing.assert_array_equal(of_folder, of_file)
    np.testing.assert_array_equal(of_folder, first)


def test_a_file_says_what_the_hub_calls_its_model(tmp_path):
    cases = {
        "org/small": {"general.source.repo_url": "https://huggingface.co/org/small"},
        "org/own": {"general.repo_url": "https://huggingface.co/org/own"},
        "file": {"general.repo_url": "https://example.com/org/own"},
    }
    for name, metadata in cases.items():
        path = tmp_path / "file.gguf"
        path.unlink(missing_ok=True)
        gguf.write_gguf(path, {"general.architecture": "llama", **metadata}, {}, np.zeros)
        assert sources.hub_name(path) == name


@pytest.mark.parametrize("out", ["out", "gs://bkt/out"])
def test_merge_writes_a_model_that_computes_the_same(
    out, home, tmp_path, monkeypatch, capsys, bucket
):
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    monkeypatch.chdir(tmp_path)
    words = ["merge", home / "base", f"{home / 'one'}=0.5", home / "ia3", out]
    assert app.main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert "hf layout" in capsys.readouterr().out
    config, merged = jaxgen.load(out)
    params = jaxgen.load(home / "base", adapter=[f"{home / 'one'}=0.5", home / "ia3"])[1]
    one, other = (jaxgen.apply(p, config, [[1, 2, 3]]).logits for p in (merged, params))
    np.testing.assert_allclose(one, other, atol=2e-5)
    assert app.main(["merge", str(home / "base")]) == 2
    assert "OUT is missing" in capsys.readouterr().err
    assert app.main(["merge", str(home / "base"), str(tmp_path / "same")]) == 2
    said = capsys.readouterr().err
    assert "base has no adapter to merge" in said and "same --to hf`" in said
    assert not (tmp_path / "same").exists()


# fmt: off
REFUSED = [
    (["one", "dora"], ConfigError, "one and .*dora don't add up"),
    (["ia3=0.5"], ConfigError, "is of kind=ia3, which has no scale"),
    (["one=x"], ConfigError, "'x' is no scale; write .*one=0.5"),
    (["one=nan"], ConfigError, "'nan' is no scale"),
    (["base"], ConfigError, "is neither a folder of PEFT"),
    (["nothing"], ConfigError, "nothing: no such run, folder or file"),
]
# fmt: on


@pytest.mark.parametrize(("names", "kind", "said"), REFUSED)
def test_what_does_not_go_together_is_refused(names, kind, said, home):
    with pytest.raises(kind, match=said):
        jaxgen.load(home / "base", adapter=[str(home / name) for name in names])


def test_another_base_and_a_base_that_is_not_here_are_refused(home, tmp_path):
    config = made("llama", KINDS["one"])[0].replace(vocab_size=259, d_model=16)
    jaxgen.save(tmp_path / "wide", config, random_params(config), layout="hf")
    with pytest.raises(CheckpointError, match="it is an adapter of another base"):
        jaxgen.load(tmp_path / "wide", adapter=home / "one")
    path = home / "two" / "adapter_config.json"
    path.write_text(path.read_text().replace("org/base", str(home / "gone")))
    with pytest.raises(ConfigError, match=r"its base .*gone. is not found here; give the base"):
        jaxgen.load(home / "two")
    assert words_of(str(home / "one"))[0].scale == 1 and "llama" in MODELS
