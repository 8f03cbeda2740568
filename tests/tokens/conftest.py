import pytest
from token_makers import hf_file, make

from jaxgen import tokens


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory):
    path = hf_file(tmp_path_factory.mktemp("hf") / "tokenizer.json")
    made = {kind: make(kind) for kind in ("bpe", "unigram", "bytes")}
    return made | {"hf": tokens.load(path, eos="<|endoftext|>")}


@pytest.fixture(scope="session")
def all_kinds(byte_level):
    return byte_level | {"chars": make("chars")}
