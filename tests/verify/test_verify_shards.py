"""`verify shards` proves a mesh on fake devices, and says so when a promise does not hold."""

import os

import forked
import pytest

from jaxgen.errors import ProofError


def test_a_broken_promise_ends_with_1():
    assert ProofError("x").exit_code == 1


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["mesh=data:2,fsdp:2"], 0, "the mesh gives the loss curve of one device"),
        (["mesh=data:2", "train.batch=7"], 2, "train.batch=7 is not a multiple"),
    ],
)
def test_a_mesh_is_proven_on_a_machine_without_accelerators(words, code, part, tmp_path):
    (tmp_path / "text.txt").write_text("the value of a list is a list of values. " * 80)
    (tmp_path / "tiny.yaml").write_text(
        "model: {context: 16, layers: 1, d_model: 8, heads: 2, vocab_size: 260, dropout: 0.1}\n"
        "tokenizer: {kind: bytes}\n"
        "data: {files: [text.txt], split: tail, valid_fraction: 0.2, test_fraction: 0.0}\n"
        "train: {batch: 8, warmup: 2}\n"
    )
    environment = dict(os.environ) | {"JAXGEN_CACHE": str(tmp_path / "cache")}
    command = ["-m", "jaxgen", "verify", "shards", "tiny.yaml", "--steps", "3", *words]
    ended, said = forked.program(command, environment, tmp_path).end()
    assert ended == code and part in said, said
    assert not (tmp_path / "runs").exists()
