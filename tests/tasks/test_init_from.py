"""Training begins with the weights, sizes and tokenizer of a folder, or says why it can't."""

import json
import shutil

import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import files, settings_yaml, tree
from jaxgen.cli import app, start
from jaxgen.errors import CheckpointError
from jaxgen.pretrained.assets import read_tokenizer
from jaxgen.pretrained.generation_config import GenerationConfig, read_generation_config
from jaxgen.run import initial, training
from jaxgen.run.settings import build_settings
from jaxgen.store import Checkpoints
from jaxgen.tokens.huggingface import HuggingFace
from jaxgen.tokens.protocol import Special

TEXT = "".join(f"line {i} of a text about the number {i * i}\n" for i in range(120))
GPT2 = {"context": 24, "layers": 1, "d_model": 16, "heads": 2, "init_std": 0.1}


def tokenizer():
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator([TEXT], trainer)
    return HuggingFace(engine.to_str().encode(), Special(eos=engine.token_to_id("<end>")))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home, words = tmp_path_factory.mktemp("home"), tokenizer()
    config = jaxgen.ModelConfig(vocab_size=words.vocab_size, **GPT2)
    params = random_params(config)
    told = GenerationConfig(eos_token_id=(words.special.eos,), top_k=7)
    jaxgen.save(home / "gpt2", config, params, tokenizer=words, generation_config=told, layout="hf")
    (home / "text.txt").write_text(TEXT)
    return home


def settings_of(home, **changes):
    given = dict(settings_yaml.read_yaml(files.config_folder() / "finetune_gpt2.yaml"))
    given |= {
        "init_from": str(home / "gpt2"),
        "data": given["data"] | {"files": [str(home / "text.txt")]},
        "model": {"context": 16},
        "train": {"steps": 9, "batch": 32, "warmup": 0, "validate_every": "epoch",
                  "learning_rate": 1e-9, "weight_decay": 0.0},
        "sample": {"prompts": ["line"], "max_new_tokens": 2},
        "checkpoint": {"every": 9},
    }  # fmt: skip
    return build_settings(given | changes)


@pytest.fixture(scope="module")
def run(home):
    training.train(settings_of(home), home / "run", cache=home / "cache")
    return home / "run"


def read(run):
    kept = Checkpoints(run / "checkpoints", keep_last=1, keep_best=0, fingerprints={})
    return tree.flatten(kept.read()["params"])


def test_a_run_begins_with_the_folders_weights_sizes_and_tokenizer(home, run):
    config, params = jaxgen.load(home / "gpt2")
    found = read(run)
    for path, leaf in tree.flatten(params).items():
        wanted = leaf[:16] if path == "embed/positions" else leaf
        np.testing.assert_allclose(found[path], wanted, atol=1e-6)
    kept, _ = jaxgen.load(run)
    assert (kept.layers, kept.context, kept.V) == (config.layers, 16, config.V)
    assert (run / "tokenizer/tokenizer.json").read_bytes() == (
        home / "gpt2/tokenizer.json"
    ).read_bytes()
    about = json.loads((run / "env.json").read_text())["init_from"]
    assert about["folder"] == str(home / "gpt2") and len(about["sha256"]) == 64
    assert "model.context=16 here, 24 there" in (run / "log.txt").read_text()


def test_validation_comes_once_an_epoch_and_at_the_end(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "valid"]
    assert steps[-1] == 9 and len(steps) > 2
    assert len(set(np.diff(steps[:-1]))) == 1 and steps[1] == 2 * steps[0]


def test_a_run_keeps_what_the_folder_says_of_generation_and_its_export_says_it_again(
    home, run, tmp_path
):
    told = read_generation_config(run)[0]
    assert told == read_generation_config(home / "gpt2")[0] and told.top_k == 7
    config, params = jaxgen.load(run)
    words = read_tokenizer(run)
    jaxgen.save(
        tmp_path / "out", config, params, tokenizer=words, generation_config=told, layout="hf"
    )
    assert read_generation_config(tmp_path / "out")[0] == told


def test_a_finished_run_needs_the_folder_no_more(home, run, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    text = (moved / "config.yaml").read_text().replace(str(home / "gpt2"), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(text)
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    assert app.main(["train", str(moved), "checkpoint.keep_last=2"]) == 0


def test_another_head_is_drawn_and_the_old_one_stays_behind(home, tmp_path):
    base = {"vocab_size": 259, "topology": "encoder", "output_bias": "bias"} | GPT2
    mlm = jaxgen.ModelConfig(head="mlm", **base)
    jaxgen.save(tmp_path / "mlm", mlm, random_params(mlm))
    wanted = tree.flatten(jaxgen.abstract(mlm.replace(head="classes", classes=3)))
    found = initial.load(tmp_path / "mlm", mlm, wanted)
    assert found.fresh == ("head/out", "head/out_bias")
    assert found.left == ("head/norm/bias", "head/norm/scale", "unembed/bias")
    assert {"head/dense", "embed/tokens"} <= found.params.keys()


POST = {"norm_at": "post", "embed_norm": "norm", "feed": "relu", "output_bias": "bias"}
POST |= {"norm_epsilon": 1e-12}
MASKED = {
    "roberta": POST | {"token_types": 1, "position_offset": 2},
    "distilbert": POST,
    "modernbert": {"positions": "rope", "embed_norm": "first", "biases": "none", "feed": "geglu"},
}
LAYERS = {
    "roberta": jaxgen.HeadLayer(activation="gelu"),
    "distilbert": jaxgen.HeadLayer(),
    "modernbert": jaxgen.HeadLayer(kind="norm", activation="silu", bias="none"),
}


@pytest.mark.parametrize(
    ("family", "layout", "activation", "keeps"),
    [
        ("roberta", "hf", "tanh", False),
        ("roberta", "jaxgen", "tanh", False),
        ("distilbert", "hf", "relu", False),
        ("modernbert", "hf", "silu", True),
        ("modernbert", "jaxgen", "silu", True),
    ],
)
def test_a_classifier_has_the_head_of_its_family(tmp_path, family, layout, activation, keeps):
    base = {"vocab_size": 31, "topology": "encoder", "head": "mlm"} | GPT2 | MASKED[family]
    masked = jaxgen.ModelConfig(**base, head_layer=LAYERS[family])
    named = {"family": family} if layout == "hf" else {}
    jaxgen.save(tmp_path / "mlm", masked, random_params(masked), layout=layout, **named)
    told = {"init_from": str(tmp_path / "mlm"), "model": {"head": "classes", "classes": 3}}
    config = build_settings(told | {"objective": {"name": "classes"}}).model
    assert (config.classes, config.head_activation) == (3, activation)
    assert config.head_kind == ("norm" if keeps else "dense")
    if layout == "hf":  # where a class of transformers has a layer of that name as well, it is kept
        wanted = tree.flatten(jaxgen.abstract(config))
        found = initial.load(tmp_path / "mlm", config, wanted)
        assert ("head/dense" in found.params) == keeps


def with_added_piece(home, path):
    path.mkdir()
    about = json.loads((home / "gpt2/tokenizer.json").read_text())
    number = tokenizer().vocab_size
    mark = {"id": number, "content": "<call>", "special": True, "single_word": False}
    about["added_tokens"].append(mark | {"lstrip": False, "rstrip": False, "normalized": False})
    (path / "tokenizer.json").write_text(json.dumps(about))
    return path / "tokenizer.json", number


@pytest.mark.parametrize("padded", [False, True], ids=["as many as needed", "rounded up"])
def test_new_pieces_get_rows_that_begin_at_the_mean_of_the_others(home, tmp_path, padded):
    file, number = with_added_piece(home, tmp_path / "words")
    rows = 320 if padded else number + 1
    changes = {"tokenizer": {"kind": "file", "file": str(file), "eos": "<end>"}}
    changes |= {"model": {"context": 16, "vocab_size": rows}} if padded else {}
    out = tmp_path / "run"
    training.train(settings_of(home, **changes), out, cache=tmp_path / "cache")
    _, params = jaxgen.load(home / "gpt2")
    config, _ = jaxgen.load(out)
    table, old = read(out)["embed/tokens"], np.asarray(params["embed"]["tokens"])
    assert rows == config.V and read_tokenizer(out).encode_marked("<call>") == [number]
    np.testing.assert_allclose(table[:number], old, atol=1e-6)
    np.testing.assert_allclose(
        table[number:], np.tile(old.mean(axis=0), (rows - number, 1)), atol=1e-6
    )
    said = f"new rows at the mean of the old ones: embed/tokens from {number} to {rows}"
    assert said in (out / "log.txt").read_text()


def test_every_table_of_tokens_grows_and_nothing_else(tmp_path):
    base = {"vocab_size": 259, "output": "untied", "output_bias": "bias"} | GPT2
    small = jaxgen.ModelConfig(**base)
    params = tree.flatten(random_params(small))
    jaxgen.save(tmp_path / "small", small, tree.unflatten(params))
    large = small.replace(vocab_size=264)
    found = initial.load(tmp_path / "small", large, tree.flatten(jaxgen.abstract(large)))
    grown = {"embed/tokens", "unembed/tokens", "unembed/bias"}
    assert {one.split()[0] for one in found.grown} == grown
    for path, leaf in params.items():
        np.testing.assert_array_equal(found.params[path][: len(leaf)], leaf)
        if path in grown:
            mean = np.asarray(leaf, np.float64).mean(axis=0)
            np.testing.assert_allclose(found.params[path][259:], np.stack([mean] * 5), atol=1e-6)


def damaged(home):
    shutil.copytree(home / "gpt2", "damaged")
    raw = open("damaged/model.safetensors", "rb").read()  # noqa: SIM115
    open("damaged/model.safetensors", "wb").write(raw[:-4])  # noqa: SIM115
    return ["init_from=damaged"]


MISTAKES = {
    "no folder": (lambda home: ["init_from=none"], 2, "init_from=none: no such folder"),
    "a run of ours": (
        lambda home: ["init_from=runs/arithmetic"],
        *(2, "arithmetic: no such folder; `jaxgen train arithmetic` makes it"),
    ),
    "another size": (
        lambda home: ["model.d_ff=32"], 4, "layers/feed/down is [1, 64, 16] there, [1, 32, 16]"),
    "another depth": (
        lambda home: ["model.layers=3"], 4, "model.layers=3 here, 1 there; leave out model.layers"),
    "a depth and a width": (
        lambda home: ["model.layers=3", "model.d_ff=32"], 4,
        "leave out model.layers and model.d_ff, or train without init_from"),
    "longer context": (
        lambda home: ["model.context=99"], 4, "embed/positions is [24, 16] there, [99, 16] here"),
    "another norm": (lambda home: ["model.norm=rms"], 4, "final_norm/bias is not in the model"),
    "another tokenizer": (
        lambda home: ["tokenizer={kind: bytes}"], 2, "is not that of init_from="),
    "a tokenizer to train": (
        lambda home: ["tokenizer={kind: bpe}"], 2, "tokenizer.kind=bpe makes new ids"),
    "too small a vocabulary": (lambda home: ["model.vocab_size=99"], 2, "model.vocab_size=99"),
    "fewer rows than the folder": (
        lambda home: ["model.vocab_size=279"], 2, "model.vocab_size=279 is smaller than the 280"),
    "init without a folder": (
        lambda home: ["init_from=null", "tokenizer={kind: init}"], 2, "kind=init needs init_from"),
    "damaged weights": (damaged, 4, "it is truncated"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "code", "part"), MISTAKES.values(), ids=MISTAKES)
def test_a_folder_that_does_not_fit_is_one_line_and_nothing_is_written(
    home, tmp_path, monkeypatch, capsys, change, code, part
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_CACHE", str(home / "cache"))
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    words = [f"init_from={home / 'gpt2'}", f"data.files=[{home / 'text.txt'}]"]
    words += ["model.context=16", *change(home)]
    assert app.main(["train", "finetune_gpt2", "--out", "out", *words]) == code
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("jaxgen: error")]
    assert len(lines) == 1 and part in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_weights_that_changed_before_the_first_checkpoint_are_refused(home, run, tmp_path):
    folder, path = home / "gpt2", tmp_path / "env.json"
    config, params = jaxgen.load(folder)
    found = initial.load(folder, config, tree.flatten(params))
    path.write_text("{}")
    initial.record(path, found, folder)
    initial.record(path, found, folder)
    other = {name: leaf + 1 for name, leaf in found.params.items()}
    jaxgen.save(tmp_path / "gpt2", config, tree.unflatten(other), layout="hf")
    changed = initial.load(tmp_path / "gpt2", config, tree.flatten(params))
    with pytest.raises(CheckpointError, match="other weights than when the run began"):
        initial.record(path, changed, folder)
