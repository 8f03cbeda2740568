"""The catalogue of bad input: each gets its exit code, one line with the value, nothing written.

A case writes what it needs into an empty folder and returns the words of the command line; the
real command runs on them, nothing faked. The catalogue grows with the house.
"""

import gzip
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from jaxgen.cli import app, start

TINY = """
model: {context: 16, layers: 1, d_model: 8, heads: 2}
tokenizer: {kind: bytes}
data: {files: [corpus.jsonl], split: tail}
train: {steps: 4, batch: 2, warmup: 0, validate_every: 4, validate_batches: 1}
checkpoint: {every: 2}
"""
CORPUS = "".join(json.dumps({"text": f"the text of record {i}"}) + "\n" for i in range(40))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(start, "prepare_jax", lambda cache: None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))
    Path("tiny.yaml").write_text(TINY)
    Path("corpus.jsonl").write_text(CORPUS)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run of two checkpoints, copied by each case that damages it."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    with patch.context() as m:
        m.chdir(home)
        m.setenv("JAXGEN_CACHE", str(home / "cache"))
        m.setattr(start, "prepare_jax", lambda cache: None)
        (home / "tiny.yaml").write_text(TINY)
        (home / "corpus.jsonl").write_text(CORPUS)
        assert app.main(["train", "tiny.yaml", "--out", "run"]) == 0
    return home / "run"


def train(*words):
    return ["train", "tiny.yaml", "--out", "out", *words]


def corpus(content: bytes, name="corpus.jsonl"):
    Path("corpus.jsonl").unlink()
    Path(name).write_bytes(content)
    return train(f"data.files=[{name}]")


def text(content: str):
    Path("tiny.yaml").write_text(content)
    return train()


def tokenizer_file(content: bytes | None, name="tok.model"):
    if content is not None:
        Path(name).write_bytes(content)
    return train("tokenizer.kind=file", f"tokenizer.file={name}")


LINE = b'{"text": "fine"}\n'
ADDRESSES = {
    "a bucket as the run": ["train", "tiny.yaml", "--out", "abfs://bucket/run"],
    "a bucket of text": ["train", "tiny.yaml", "data.files=[hdfs://bucket/*.txt]", "--out", "out"],
    "text by its address": ["train", "https://host/text.txt"],
    "a model in a bucket": ["train", "tiny.yaml", "init_from=az://bucket/model", "--out", "out"],
    "a run in a bucket": ["generate", "ftp://bucket/run"],
    "a config into a bucket": ["init", "text", "corpus.jsonl", "--out", "gs://bucket/my.yaml"],
    "a compressed model in a bucket": ["compress", ".", "--recipe", "int8", "--out", "s3://b/x"],
    "rungs in a bucket": ["ladder", ".", "--recipes", "int8", "--out", "s3://b/x"],
    "an audit in a bucket": ["audit", ".", "--out", "s3://b/x"],
    "texts into a bucket": ["generate", ".", "--prompt", "a", "--output", "gs://b/x.txt"],
    "subtitles into a bucket": ["transcribe", ".", "a.wav", "--output", "gs://b/x.srt"],
    "figures into a bucket": ["bench", "train", "--out", "gs://b/x"],
    "vectors into a bucket": ["embed", ".", "a", "--output", "gs://b/x.json"],
}
CONFIG = {
    "no config": (lambda: ["train", "tinny.yaml"], "did you mean"),
    "empty config": (lambda: text(""), "tiny.yaml is empty"),
    "unknown section": (lambda: text("modle: {}"), "unknown key 'modle' (did you mean 'model'?)"),
    "unknown key": (lambda: text("train: {step: 3}"), "'train.step' (did you mean 'train.steps'?)"),
    "key in another section": (lambda: train("model.steps=3"), "did you mean 'train.steps'"),
    "key twice": (lambda: text("train: {}\ntrain: {}"), "'train' is written twice"),
    "tab": (lambda: text("train:\n\tsteps: 1"), "tiny.yaml:2:1"),
    "python tag": (lambda: text("train: !!python/object:os.system {}"), "is not read"),
    "alias bomb": (
        lambda: text(
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{n}: &{n} [{','.join(['*' + p] * 10)}]\n"
                for p, n in zip("abcdef", "bcdefg", strict=True)
            )
        ),
        "more than 100000 values",
    ),
    "mistyped override": (lambda: train("train.stepz=3"), "did you mean 'train.steps'"),
    "override without value": (lambda: train("train.steps="), "override 'train.steps=' is empty"),
    "word without =": (lambda: train("train.steps"), "'train.steps'"),
    "unknown flag": (lambda: train("--stepz"), "--stepz"),
    "unknown verb": (lambda: ["trian"], "did you mean"),
    "learning rate not a number": (
        lambda: train("train.learning_rate=1e-3x"),
        "'1e-3x' is a string",
    ),
    "learning rate nan": (lambda: train("train.learning_rate=.nan"), "train.learning_rate=nan"),
    "learning rate inf": (lambda: train("train.learning_rate=.inf"), "train.learning_rate=inf"),
    "learning rate negative": (lambda: train("train.learning_rate=-1"), "learning_rate=-1.0"),
    "quoted number": (lambda: train("train.learning_rate='0.001'"), "write 0.001"),
    "steps 0": (lambda: train("train.steps=0"), "steps=0 must be at least 1"),
    "steps negative": (lambda: train("train.steps=-5"), "steps=-5"),
    "steps 1.5": (lambda: train("train.steps=1.5"), "train.steps=1.5"),
    "steps 1e30": (lambda: train("train.steps=1e30"), "train.steps=1"),
    "heads do not divide": (
        lambda: train("model.heads=3"),
        "d_model=8 is not a multiple of heads=3",
    ),
    "kv heads do not divide": (lambda: train("model.kv_heads=3"), "kv_heads=3"),
    "odd rotary head": (
        lambda: train("model.positions=rope", "model.head_dim=3"),
        "head_dim=3 is odd",
    ),
    "vocabulary too small": (
        lambda: train("model.vocab_size=100"),
        "model.vocab_size=100 is smaller than the tokenizer's 259",
    ),
    "context 1": (lambda: train("model.context=1"), "context=1 must be at least 2"),
    "context 0": (lambda: train("model.context=0"), "context=0"),
    "batch does not divide": (lambda: train("train.accumulate=3"), "accumulate=3"),
    "too few steps for a profile": (lambda: train("--profile"), "traces 5 steps after 2 others"),
    "unknown dtype": (lambda: train("model.param_dtype=float12"), "'float12' is not one of"),
    "unknown optimizer": (lambda: train("train.optimizer=adamv"), "did you mean 'adamw'"),
    "unknown preset": (lambda: train("model.preset=gpt3"), "preset 'gpt3' is unknown"),
    "dropout 1.5": (lambda: train("model.dropout=1.5"), "dropout=1.5"),
    "beta 1": (lambda: train("train.beta1=1.0"), "beta1=1.0"),
    "epsilon 0": (lambda: train("train.epsilon=0"), "epsilon=0.0"),
    "save every 0": (lambda: train("checkpoint.every=0"), "every=0"),
    "keep 0": (lambda: train("checkpoint.keep_last=0"), "keep_last=0"),
    "freeze nothing": (lambda: train("train.freeze=[layer/*]"), "'layer/*' matches no parameter"),
    "folder that is no run": (
        lambda: (Path("out").mkdir(), Path("out/mine.txt").write_text("x"), train())[2],
        "out exists and is no run: it holds 'mine.txt'",
    ),
    "vocabulary larger than the text supports": (
        lambda: train("tokenizer.kind=bpe", "tokenizer.vocab_size=5000"),
        "vocab_size=5000",
    ),
    "sample prompt longer than the context": (
        lambda: train(f"sample.prompts=[{'a' * 40}]"),
        "context=16",
    ),
    "no corpus at all": (lambda: train("data.files=[]"), "data.files"),
    "two corpora": (lambda: train("data.corpus=python-docs"), "exclude each other"),
}
DATA = {
    "no such file": (lambda: train("data.files=[none*.txt]"), "none*.txt"),
    "empty file": (lambda: corpus(b""), "corpus.jsonl"),
    "invalid utf-8": (
        lambda: corpus(b"fine \xff text", "c.txt"), "c.txt is not UTF-8 at byte offset 5 (0xff)"),
    "not json": (lambda: corpus(LINE + b"{oops\n"), "corpus.jsonl:2"),
    "not an object": (lambda: corpus(LINE * 2 + b"[1]\n"), "corpus.jsonl:3"),
    "field missing": (lambda: corpus(LINE + b'{"txt": "x"}\n'), "corpus.jsonl:2"),
    "field is null": (lambda: corpus(b'{"text": null}\n'), "corpus.jsonl:1"),
    "lone surrogate": (lambda: corpus(LINE + b'{"text": "\\ud800"}\n'), "corpus.jsonl:2"),
    "truncated gzip": (lambda: corpus(gzip.compress(LINE * 99)[:-20], "c.jsonl.gz"), "c.jsonl.gz"),
    "truncated parquet": (lambda: corpus(b"PAR1 and no more", "c.parquet"), "c.parquet"),
    "a folder without text": (
        lambda: (Path("d").mkdir(), ["train", "d"])[1], "only folders without text match"
    ),
    "no text": (lambda: corpus(b"%PDF-1.7\n\0\xff", "c.pdf"), "c.pdf"),
    "text shorter than the context": (lambda: train("model.context=9999"), "context"),
    "too little text": (lambda: corpus(b'{"text": "a"}\n'), "split"),
}  # fmt: skip
CHECKPOINT = {
    "tokenizer file missing": (lambda: tokenizer_file(None), "tok.model: no such tokenizer file"),
    "tokenizer file empty": (lambda: tokenizer_file(b""), "tok.model is empty"),
    "tokenizer file truncated": (lambda: tokenizer_file(b"\x0a\x10\x0a"), "tok.model"),
    "lfs pointer": (
        lambda: tokenizer_file(b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "web page": (lambda: tokenizer_file(b"<!doctype html><html>"), "web page"),
    "tokenizer.json damaged": (
        lambda: tokenizer_file(b'{"model": ', "tokenizer.json"), "tokenizer.json"),
}  # fmt: skip
SYSTEM = {
    "out below a file": (
        lambda: (Path("file").write_text("x"), ["train", "tiny.yaml", "--out", "file/out"])[1],
        "file/out",
    ),
    "out is a file": (lambda: (Path("out").write_text("x"), train())[1], "out"),
    "out where nothing can be written": (
        lambda: ["train", "tiny.yaml", "--out", "/proc/out"], "/proc/out"),
}  # fmt: skip
CASES = [
    pytest.param(code, *case, id=name)
    for code, cases in ((2, CONFIG), (7, DATA), (4, CHECKPOINT), (3, SYSTEM))
    for name, case in cases.items()
]
CASES += [
    pytest.param(2, lambda words=words: words, "is an address", id=name)
    for name, words in ADDRESSES.items()
]


def refused(capsys, words, code, part):
    found = app.main([str(word) for word in words])
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("jaxgen: ")]
    assert (found, len(lines)) == (code, 1), shown.err
    assert part in lines[0], lines[0]
    assert "Traceback" not in shown.err + shown.out
    assert re.match(r"jaxgen: error: ", lines[0])


@pytest.mark.parametrize(("code", "case", "part"), CASES)
def test_training_refuses(capsys, folder, code, case, part):
    words = case()
    before = sorted(path.name for path in folder.iterdir())
    refused(capsys, words, code, part)
    after = {path.name for path in folder.iterdir()} - {"cache"}
    assert sorted(after) == [name for name in before if name != "cache"]
    assert not list(folder.rglob(".tmp-*"))


def generate(*words):
    return ["generate", "run", "--max-new-tokens", "3", *words]


USE = {
    "prompt longer than the context": (2, generate("--prompt", "a" * 40), "context=16"),
    "prompt and answer too long": (
        2, ["generate", "run", "--prompt", "abc", "--max-new-tokens", "99"], "at most"),
    "empty prompt": (2, generate("--prompt", ""), "prompt is empty"),
    "negative temperature": (2, generate("--prompt", "a", "--temperature", "-1"), "-1.0"),
    "temperature nan": (2, generate("--prompt", "a", "--temperature", "nan"), "nan"),
    "top-p 0": (2, generate("--prompt", "a", "--top-p", "0"), "--top-p=0.0"),
    "top-p 1.5": (2, generate("--prompt", "a", "--top-p", "1.5"), "--top-p=1.5"),
    "top-k 0": (2, generate("--prompt", "a", "--top-k", "0"), "--top-k=0"),
    "no samples": (2, generate("--prompt", "a", "--samples", "0"), "--samples=0"),
    "seed of 65 bits": (2, generate("--prompt", "a", "--seed", str(2**64)), "and less than"),
    "no such run": (2, ["generate", "rum", "--prompt", "a"], "rum: no such run"),
    "no such prompt file": (2, generate("--prompt", "@none.txt"), "none.txt"),
    "a folder that is no run": (4, ["generate", "cache", "--prompt", "a"], "CONFIG.yaml --out"),
    "a folder of text": (4, ["generate", "texts", "--prompt", "a"], "`jaxgen train texts` trains"),
    "eval of no run": (2, ["eval", "cache"], "cache is no run"),
    "unknown split": (2, ["eval", "run", "--split", "tset"], "did you mean"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "words", "part"), USE.values(), ids=USE)
def test_using_a_run_refuses(capsys, run, folder, code, words, part):
    shutil.copytree(run, "run")
    for name in ("cache", "texts"):
        Path(name).mkdir(exist_ok=True)
    Path("texts/a.txt").write_text("text")
    refused(capsys, words, code, part)


def test_a_run_that_never_saved_is_told_to_be_trained_whatever_is_asked_of_it(capsys, run, folder):
    shutil.copytree(run, "run", ignore=shutil.ignore_patterns("checkpoints"))
    for more in ([], ["data.files=corpus.jsonl"]):
        refused(capsys, ["eval", "run", *more], 4, "it lacks checkpoints/; `jaxgen train run`")


def steps():
    return sorted(path for path in Path("run/checkpoints").iterdir())


def truncate_arrays():
    for step in steps():
        for path in step.rglob("*"):
            if path.is_file() and path.name != "manifest.json":
                path.write_bytes(path.read_bytes()[:-1])


def edit_manifest():
    for step in steps():
        path = step / "manifest.json"
        path.write_text(path.read_text().replace('"step"', '"stop"', 1))


def drop_manifests():
    for step in steps():
        (step / "manifest.json").unlink()


def drop_checkpoints():
    shutil.rmtree("run/checkpoints")


def edit_config():
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("d_model: 8", "d_model: 16"))


def damage_tokenizer():
    for path in Path("run/tokenizer").iterdir():
        path.write_bytes(path.read_bytes()[:-3])


DAMAGES = [
    truncate_arrays, edit_manifest, drop_manifests, drop_checkpoints, edit_config, damage_tokenizer
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__.replace("_", " "))
def test_a_damaged_run_is_refused_with_code_4(capsys, run, folder, damage):
    shutil.copytree(run, "run")
    damage()
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    refused(capsys, generate("--prompt", "a"), 4, "run")
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("damage", [truncate_arrays, edit_manifest, drop_manifests])
def test_resuming_with_no_sound_checkpoint_is_refused_not_begun_anew(capsys, run, folder, damage):
    shutil.copytree(run, "run")
    damage()
    refused(capsys, ["train", "run", "data.workers=0"], 4, "checkpoint")
    assert steps()


def test_a_seed_of_64_bits_is_taken(capsys, run, folder):
    shutil.copytree(run, "run")
    assert app.main(generate("--prompt", "a", "--seed", str(2**64 - 1))) == 0
