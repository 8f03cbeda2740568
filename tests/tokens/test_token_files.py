"""What is no tokenizer gets one line that says so."""

import subprocess
import sys

import pytest
from token_makers import TEXT, edited, hf_file, make

from jaxgen import tokens
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.tokens import TokenizerSettings

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
RAW = {
    "empty": (b"", "is empty"),
    "lfs": (LFS, "LFS pointer; run git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "garbage": (b"\xff\xfe garbage \x00\x01", "no sentencepiece model"),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("file", ("x.model", "tokenizer.json"))
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, name, file):
    raw, words = RAW[name]
    (tmp_path / file).write_bytes(raw)
    if name == "garbage" and file == "tokenizer.json":
        words = "not a tokenizer.json"
    with pytest.raises(CheckpointError, match=words) as caught:
        tokens.load(tmp_path / file)
    assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value)


def test_a_missing_file_or_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such tokenizer file"):
        tokens.load(tmp_path / "none.model")
    with pytest.raises(CheckpointError, match="no such description"):
        tokens.load(tmp_path)


def test_every_truncation_of_a_sentencepiece_model_is_refused(tmp_path):
    model = make("bpe").model
    for size in [*range(1, len(model), 97), len(model) - 1]:
        (tmp_path / "x.model").write_bytes(model[:size])
        with pytest.raises(CheckpointError):
            tokens.load(tmp_path / "x.model")


def _vocabulary(about):
    return about["model"]["vocab"]


HF = {
    "shared id": (lambda a: _vocabulary(a).update(zzz=5), "share id 5"),
    "an added piece that the library moves onto another": (
        lambda a: (
            _vocabulary(a).update({"!": 300}),
            a["added_tokens"].append(a["added_tokens"][0] | {"content": "<x>", "id": 301}),
        ),
        "have a hole",
    ),
    "huge id": (lambda a: _vocabulary(a).update(zzz=2**32 - 1), "4294967295"),
    "negative id": (lambda a: _vocabulary(a).update(zzz=-1), "-1"),
    "text as id": (lambda a: _vocabulary(a).update(zzz="7"), "'7'"),
    "true as id": (lambda a: _vocabulary(a).update(zzz=True), "True"),
    "unknown model": (lambda a: a["model"].update(type="Magic"), "library refuses"),
    "merge of nothing": (lambda a: a["model"]["merges"].append(["qqq", "zzz"]), "library refuses"),
    "no model": (lambda a: a.pop("model"), "no `model` section"),
    "no vocabulary": (lambda a: a.update(added_tokens=[]) or a["model"].update(vocab={}), "empty"),
    "odd vocabulary": (lambda a: a["model"].update(vocab=7), "malformed"),
    "added without id": (lambda a: a["added_tokens"].append({"content": "x"}), "malformed"),
    "bad regex": (
        lambda a: a.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
        "library refuses",
    ),
}


@pytest.mark.parametrize("name", HF)
def test_a_malformed_tokenizer_json_is_refused_in_one_line(tmp_path, name):
    change, words = HF[name]
    path = edited(hf_file(tmp_path / "tokenizer.json"), change)
    with pytest.raises(CheckpointError, match=words) as caught:
        tokens.load(path)
    assert "\n" not in str(caught.value)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = hf_file(tmp_path / "tokenizer.json")
    path.write_text(path.read_text().replace('"vocab": {', '"vocab": {"a": 1, "a": 2,', 1))
    with pytest.raises(CheckpointError, match="'a' is there twice"):
        tokens.load(path)


def test_deep_nesting_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model":' + "[" * 200_000)
    with pytest.raises(CheckpointError, match=r"not a tokenizer\.json"):
        tokens.load(tmp_path / "tokenizer.json")


def test_a_special_piece_that_the_file_lacks_is_refused_with_the_nearest(tmp_path):
    path = hf_file(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer\.eos='<endoftext>'.*'<|endoftext|>'"):
        tokens.load(path, eos="<endoftext>")


def test_a_changed_or_incomplete_saved_folder_is_refused(tmp_path):
    make("bpe").save(tmp_path / "a")
    model = tmp_path / "a" / "tokenizer.model"
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.write_bytes(raw)
    with pytest.raises(CheckpointError, match="sha256"):
        tokens.load(tmp_path / "a")
    model.unlink()
    with pytest.raises(CheckpointError, match="no such tokenizer file"):
        tokens.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("old", "new"),
    [('"eos": 2', '"eos": 999'), ('"format": 1', '"format": 2'), ("{", "", ), ('"kind"', '"kin"'),
     ('"eos": 2', '"eos": 3'), ('"tokenizer.model"', '"../tokenizer.model"')],
)  # fmt: skip
def test_an_edited_description_is_refused(tmp_path, old, new):
    make("bpe").save(tmp_path / "a")
    about = tmp_path / "a" / "about.json"
    about.write_text(about.read_text().replace(old, new, 1))
    with pytest.raises(CheckpointError):
        tokens.load(tmp_path / "a")


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_too_large_a_vocabulary_names_the_largest_that_works(kind):
    with pytest.raises(ConfigError, match=r"vocab_size=9999 .*largest that works is \d+") as caught:
        tokens.train(TokenizerSettings(kind=kind, vocab_size=9999), TEXT)
    largest = int(str(caught.value).split()[-1])
    made = tokens.train(TokenizerSettings(kind=kind, vocab_size=largest), TEXT)
    assert made.vocab_size == largest


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
@pytest.mark.parametrize("text", (TEXT[0], "some words to learn from, again and again " * 9))
def test_too_small_a_vocabulary_names_the_smallest_that_works(kind, text):
    words = r"vocab_size=261 .*smallest that works is \d+"
    with pytest.raises(ConfigError, match=words) as caught:
        tokens.train(TokenizerSettings(kind=kind, vocab_size=261), [text])
    smallest = int(str(caught.value).split()[-1])
    made = tokens.train(TokenizerSettings(kind=kind, vocab_size=smallest), [text])
    assert made.vocab_size == smallest


@pytest.mark.parametrize("kind", ("bpe", "unigram", "chars"))
@pytest.mark.parametrize("texts", ([], [""]))
def test_nothing_to_learn_from_is_refused(kind, texts):
    with pytest.raises(DataError, match="corpus has no"):
        tokens.train(TokenizerSettings(kind=kind), texts)


@pytest.mark.parametrize(
    "fields",
    [{"vocab_size": 3}, {"kind": "file"}, {"bos": "x"}, {"kind": "chars", "vocab_size": 99},
     {"kind": "bytes", "file": "x"}, {"max_bytes": 0}, {"vocab_size": 10**12}],
)  # fmt: skip
def test_contradictory_settings_are_refused(fields):
    from jaxgen import settings

    with pytest.raises(ConfigError, match=list(fields)[-1]):
        settings.build(TokenizerSettings, fields)


def test_a_missing_library_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch):
    path = hf_file(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxgen\[hf\]'"):
        tokens.load(path)


def test_training_says_nothing_by_itself(tmp_path):
    program = (
        "from jaxgen import tokens\n"
        "s = tokens.TokenizerSettings(kind='unigram', vocab_size=276)\n"
        "t = tokens.train(s, ['some words to learn from, again and again '] * 9)\n"
        "t.save(__import__('sys').argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
