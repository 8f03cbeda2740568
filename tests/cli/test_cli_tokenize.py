"""`jaxgen tokenize` in parts, and the tokenizer that it keeps."""

import pytest

from jaxgen.cli.app import main

CONFIG = """
model: {layers: 1, d_model: 16, heads: 2, context: 16}
data: {files: [texts], split: hash}
tokenizer: {kind: bytes}
train: {steps: 2, batch: 2}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config and three files, which is the working directory."""
    (tmp_path / "texts").mkdir()
    for number in range(3):
        lines = [f'{{"text": "story {i} of {number}: once upon a time"}}\n' for i in range(40)]
        (tmp_path / f"texts/{number}.jsonl").write_text("".join(lines))
    (tmp_path / "my.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def tokenize(capsys, *words):
    """Return the exit code, and the facts or the message."""
    code = main(["tokenize", "my.yaml", *map(str, words)])
    said = capsys.readouterr()
    if code:
        return code, said.err
    return code, dict(line.split(maxsplit=1) for line in said.out.splitlines())


def test_parts_are_made_skipped_and_joined_into_what_one_command_makes(folder, capsys):
    for number in range(5):  # of three files: some parts have none
        code, facts = tokenize(capsys, "--part", number, "--of", 5)
        assert code == 0 and facts["part"] == f"{number} of 5 (written)"
    assert tokenize(capsys, "--part", 4, "--of", 5)[1]["part"] == "4 of 5 (reused)"
    code, joined = tokenize(capsys, "--join", "--of", 5)
    assert code == 0 and joined["shards"].endswith("(written)")
    code, again = tokenize(capsys)
    assert again == joined | {"shards": joined["shards"].replace("written", "reused")}
    (folder / "texts/1.jsonl").unlink()
    code, message = tokenize(capsys, "--join", "--of", 5)
    assert code != 0 and "parts 0, 1, 2, 3, 4 of 5 are missing" in message


def test_a_tokenizer_is_kept_and_then_serves_parts(folder, capsys):
    learn = ("tokenizer.kind=bpe", "tokenizer.vocab_size=300")
    code, message = tokenize(capsys, *learn, "--part", 0, "--of", 2)
    assert code == 2 and "--tokenizer-to tok" in message
    code, facts = tokenize(capsys, *learn, "--tokenizer-to", "tok")
    assert code == 0 and facts["tokenizer"] == "bpe, 300 ids, in tok"
    use = ("tokenizer.kind=file", "tokenizer.file=tok/tokenizer.model")
    assert tokenize(capsys, *use, "--part", 0, "--of", 2)[0] == 0
    code, message = tokenize(capsys, *learn, "--tokenizer-to", "tok")
    assert code != 0 and "tok is there already" in message


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--of", 2), "goes with one of --part and --join"),
        (("--join",), "goes with one of --part and --join"),
        (("--part", 0), "goes with one of --part and --join"),
        (("--part", 0, "--join", "--of", 2), "goes with one of --part and --join"),
        (("--part", 2, "--of", 2), "counted from 0"),
        (("--part", 0, "--of", 2, "--tokenizer-to", "x"), "has no effect with --part"),
        (("--part", 0, "--of", 2, "data.split=tail"), "set data.split=hash"),
    ],
)
def test_parts_that_can_not_be_are_refused(folder, capsys, words, why):
    code, message = tokenize(capsys, *words)
    assert code == 2 and why in message and not (folder / "cache/data").exists()
