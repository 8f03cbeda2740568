"""A model's name means a path, a package, or a model of a hub, here one on the loopback."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import COMMITS, serving
from random_params import random_params

import jaxgen
from jaxgen import tokens, tree
from jaxgen.errors import BusyError, CheckpointError, ConfigError, MissingPackageError
from jaxgen.pretrained import (
    chat_template,
    generation_config,
    hub_download,
    hub_read,
    hub_tokenizer,
    pooling,
    sources,
)
from jaxgen.tokens import marian

huggingface_hub = pytest.importorskip("huggingface_hub")
CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=16, layers=1, d_model=8, heads=2, norm="rms", positions="rope",
    feed="swiglu", biases="none",
)  # fmt: skip
LEFT = {"pytorch_model.bin": b"x", "evil.py": b"y", "onnx/model.onnx": b"z", "README.md": b"# x"}
POOLING = {"2_Dense/config.json": b"{}", "2_Dense/model.safetensors": b"d"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a small model in the Hugging Face layout."""
    home = tmp_path_factory.mktemp("hub") / "model"
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    params = random_params(CONFIG)
    jaxgen.save(home, CONFIG, params, tokenizer=tokenizer, layout="hf")
    return {path.name: path.read_bytes() for path in home.iterdir()}


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    """A hub with that model and others, and an empty cache."""
    from huggingface_hub import constants

    small = {name: files[name] for name in files if name != "model.safetensors"}
    shards = {"model-1.safetensors": b"one" * 700, "model-2.safetensors": b"two" * 900}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    models = {
        "org/tiny": files | LEFT,
        "org/sharded": {
            **shards, **small, "model.safetensors.index.json": json.dumps(index).encode(),
            "model.fp16.safetensors": b"f", "consolidated.safetensors": b"c",
        },
        "org/vectors": files | POOLING | {"2_Dense/pytorch_model.bin": b"x", "modules.json": b"[]"},
        "org/pickled": small | {"pytorch_model.bin": b"x"},
        "org/empty": {"README.md": b""},
        "org/lost": small | {"model.safetensors.index.json": json.dumps(index).encode()},
        "org/one-GGUF": {"tiny-Q8_0.gguf": b"GGUF", "README.md": b""},
        "org/many-GGUF": {f"tiny-{kind}.gguf": b"GGUF" for kind in ("Q4_K_M", "Q8_0", "F16")},
        "org/both": files | {"tiny-Q8_0.gguf": b"GGUF"},
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries of a download
    with serving(models) as hub:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def test_a_model_of_the_hub_is_the_folder_that_was_saved(hub, capfd):
    config, params = jaxgen.load("org/tiny")
    assert config.d_model == 8 and "fetched org/tiny: " in capfd.readouterr().err
    expected = random_params(CONFIG)
    for path, leaf in tree.flatten(expected).items():
        np.testing.assert_array_equal(tree.flatten(params)[path], leaf)
    assert not {*hub.fetched()} & LEFT.keys() and "model.safetensors" in hub.fetched()


def test_what_the_cache_has_is_asked_for_once(hub, capfd):
    first = sources.local_path("org/tiny")
    hub.asked.clear()
    capfd.readouterr()
    assert sources.local_path("org/tiny") == first
    assert [method for method, _, _ in hub.asked] == ["GET"] and not hub.fetched()
    assert capfd.readouterr().err == ""


def test_a_revision_is_a_folder_of_its_own(hub):
    main, named = sources.local_path("org/tiny"), sources.local_path("org/tiny@v1")
    assert main.name == COMMITS["main"] and named.name == COMMITS["v1"]
    assert sources.local_path(f"org/tiny@{COMMITS['v1']}") == named


def test_of_shards_those_that_the_index_names_are_fetched(hub):
    home = sources.local_path("org/sharded")
    weights = sorted(path.name for path in home.iterdir() if path.suffix == ".safetensors")
    assert weights == ["model-1.safetensors", "model-2.safetensors"]


def test_the_modules_after_a_model_come_with_it(hub):
    home = sources.local_path("org/vectors")
    assert {str(path.relative_to(home)) for path in home.glob("2_Dense/*")} == POOLING.keys()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("org/one-GGUF", "tiny-Q8_0.gguf"),
        ("org/many-GGUF:tiny-F16.gguf", "tiny-F16.gguf"),
        ("org/many-GGUF:q4_k_m", "tiny-Q4_K_M.gguf"),
        ("org/many-GGUF@v1:Q8", "tiny-Q8_0.gguf"),
        ("org/both:tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
    ],
)
def test_of_gguf_files_one_is_fetched(hub, name, file):
    assert sources.local_path(name).name == file
    assert {*hub.fetched()} == {file}


def test_safetensors_come_before_gguf(hub):
    assert (sources.local_path("org/both") / "model.safetensors").exists()
    assert "tiny-Q8_0.gguf" not in hub.fetched()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("org/none", ConfigError, "org/none: no such path here, and no such model at http"),
        ("org/tiny@v9", ConfigError, "org/tiny has no branch, tag or commit v9"),
        ("org/empty", ConfigError, "org/empty has no config.json"),
        ("org/pickled", CheckpointError, "pytorch_model.bin alone, a pickle, which is not read"),
        ("org/lost", CheckpointError, "org/lost has no model-1.safetensors"),
        ("org/many-GGUF", ConfigError, "3 files are meant; give one of them: org/many-GGUF:tiny-F"),
        ("org/many-GGUF:Q6", ConfigError, "no .gguf file is called so; there are org/many-GGUF:"),
        ("org/tiny:Q6", ConfigError, "org/tiny has no .gguf file; leave out :Q6"),
        ("org/a..b", ConfigError, "org/a..b is no name of the hub"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub, name, kind, words):
    with pytest.raises(kind) as caught:
        sources.local_path(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not {*hub.fetched()} & {"pytorch_model.bin"}


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "HTTP 401; log in with"), (403, "HTTP 403; log in"), (503, "HTTP 503; try again later")],
)
def test_a_hub_that_refuses_is_one_line(hub, status, words):
    hub.status = status
    with pytest.raises(BusyError, match=words):
        sources.local_path("org/tiny")


def test_a_gated_model_says_where_to_ask(hub, monkeypatch):
    hub.gated.add("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(BusyError, match=f"org/tiny is gated: ask for access at {hub.url}/org/tiny"):
        sources.local_path("org/tiny")
    assert "Bearer hf_secret" in hub.tokens


def test_without_a_network_the_cache_is_taken_and_said(hub, monkeypatch):
    from huggingface_hub import constants

    home = sources.local_path("org/tiny")
    hub.status = 503
    with pytest.warns(match=r"org/tiny: taken from the cache, for http.* answers with HTTP 503"):
        assert sources.local_path("org/tiny") == home
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sources.local_path("org/tiny") == home and not hub.asked
    with pytest.raises(BusyError, match=r"org/vectors is not in .*cache, and HF_HUB_OFFLINE"):
        sources.local_path("org/vectors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BusyError, match=r"org/vectors: no such path here, and .* can't be reached"):
        sources.local_path("org/vectors")


@pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="it gives up at once")
def test_a_download_that_is_cut_goes_on_where_it_was(hub, monkeypatch):
    from huggingface_hub import constants

    hub.cut = 1000
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is taken at once
    home = sources.local_path("org/sharded")
    sizes = [(home / f"model-{i}.safetensors").stat().st_size for i in (1, 2)]
    assert sizes == [2100, 2700]
    ranges = [r for _, path, r in hub.asked if path.endswith("model-1.safetensors")]
    assert ranges == [None, None, "bytes=1000-", "bytes=2000-"]


def test_a_download_that_is_cut_for_good_is_not_taken_for_whole(hub, monkeypatch):
    from huggingface_hub import constants

    hub.cut = 0
    with pytest.raises(BusyError, match=r"org/sharded: the download broke off .* try again"):
        sources.local_path("org/sharded")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BusyError, match="org/sharded is not in"):
        sources.local_path("org/sharded")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.cut = None
    hub.asked.clear()
    sources.local_path("org/sharded")
    assert hub.fetched() == ["model-1.safetensors", "model-2.safetensors"]


def test_a_damaged_download_is_dropped(hub):
    hub.wrong.add("model-2.safetensors")
    with pytest.raises(CheckpointError, match=r"model-2.safetensors came damaged"):
        sources.local_path("org/sharded")
    hub.wrong.clear()
    home = sources.local_path("org/sharded")
    assert (home / "model-2.safetensors").read_bytes() == b"two" * 900


def test_a_full_disk_is_one_line(hub, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(BusyError, match="cache has no space left on its disk"):
        sources.local_path("org/tiny")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"org/tiny: .*pip install 'jaxgen\[hub\]'"):
        sources.local_path("org/tiny")


def test_what_lies_here_comes_first(hub, tmp_path):
    (tmp_path / "org/tiny").mkdir(parents=True)
    assert sources.local_path("org/tiny") == Path("org/tiny") and not hub.asked
    with pytest.raises(ConfigError, match=r"org is a folder here; for .* hub: org/other@main"):
        sources.local_path("org/other")
    assert not hub.asked and sources.local_path("org/tiny@main").is_dir() and hub.asked
    (tmp_path / "smollm2").touch()
    assert sources.local_path("smollm2") == Path("smollm2")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2-medium", "that of the Hugging Face hub is openai-community/gpt2-medium"),
        ("smolm2", "did you mean 'smollm2'?"),
        ("none", r"ORG/NAME"),
        ("runs/none", "a saved or Hugging Face folder"),
        ("org/my.yaml", "no such run, folder or file"),
        ("", "no such run"),
    ],
)
def test_a_name_that_means_nothing_says_what_to_give(name, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        sources.local_path(name)
    assert words in str(caught.value)


def test_a_package_that_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(
        sources.PACKAGES, "smollm2", sources.Package("no_such", "pip install x", "org/x")
    )
    with pytest.raises(ConfigError, match=r"smollm2: .* is not installed; `pip install x`"):
        sources.local_path("smollm2")


def test_all_that_is_read_of_a_folder_is_fetched():
    read = {
        hub_read.CONFIG, hub_read.INDEX, generation_config.GENERATION, *hub_tokenizer.PROTOS,
        hub_tokenizer.FILE, hub_tokenizer.CONFIG, hub_tokenizer.ROLES, hub_tokenizer.ADDED,
        hub_tokenizer.VOCAB, hub_tokenizer.MERGES, hub_tokenizer.WORDS, hub_tokenizer.TIKTOKEN,
        marian.SOURCE, marian.TARGET, chat_template.TEMPLATE, chat_template.OLD,
        pooling.MODULES, pooling.PROMPTS, *pooling.LENGTHS,
    }  # fmt: skip
    assert read <= hub_download.SMALL
    below = (f"{chat_template.FOLDER}/rag.jinja", f"1_Pooling/{pooling.ABOUT}")
    assert all(map(hub_download.BELOW.fullmatch, (*below, f"2_Dense/{pooling.WEIGHTS}")))
    assert hub_download.WEIGHTS == hub_read.WEIGHTS and hub_download.PICKLES == hub_read.PICKLES


def test_verbs_and_training_take_a_model_of_the_hub(hub, tmp_path):
    from jaxgen import run
    from jaxgen.cli import paths

    home = sources.local_path("org/tiny@v1")
    assert paths.model("org/tiny@v1", None) == (home, None)
    assert run.build_settings({"init_from": "org/tiny@v1"}).init_from == home
    with pytest.raises(ConfigError, match="org/none: no such path here"):
        paths.model("org/none", None)
    with pytest.raises(ConfigError, match=r"none: no such run or model; give the path of a run"):
        paths.model("none", None)


def test_the_environment_says_where_the_hub_and_its_cache_are(files, tmp_path):
    with serving({"org/tiny": files}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x"}
        environment["HF_HUB_OFFLINE"] = "0"  # which other tests set
        program = "from jaxgen.pretrained import sources; print(sources.local_path('org/tiny@v1'))"
        found = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **environment}, cwd=tmp_path,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Bearer hf_x" in hub.tokens
    home = tmp_path / "hf/hub/models--org--tiny/snapshots" / COMMITS["v1"]
    assert found.stdout.strip() == str(home) and "fetched org/tiny@v1" in found.stderr
