"""`jaxgen serve` refuses at once what can't be, before anything is loaded."""

import socket

import pytest

from jaxgen.cli import serve

REFUSED = [
    (["--host", "0.0.0.0"], 2, "set JAXGEN_API_KEY or give --api-key-file"),
    (["--host", "::", "--port", "0"], 2, "set JAXGEN_API_KEY"),
    (["--port", "70000"], 2, "--port 70000 must be at most 65535"),
    (["--slots", "0"], 2, "--slots=0 must be at least 1"),
    (["--api-key-file", "empty.txt"], 2, "holds no key"),
    (["--name", "a", "--name", "b"], 2, "--name is given 2 times for 1 models"),
    (["m", "--name", "m"], 2, "two models are called 'm'"),
    (["--request-seconds", "0"], 2, "must be greater than 0"),
]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.delenv(serve.KEY, raising=False)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("\n")


@pytest.mark.parametrize(("words", "code", "said"), REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_what_cannot_be_is_refused(jaxgen, model, words, code, said):
    found = jaxgen("serve", "m", *words)
    assert (found.code, found.out) == (code, "") and said in found.err


def test_a_port_that_is_taken_is_said(jaxgen, model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found = jaxgen("serve", "m", "--port", str(port))
    assert found.code == 3 and f"127.0.0.1:{port} can't be listened on" in found.err


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(serve.KEY, " secret ")
    assert serve._keys_of(serve.Listening(host="0.0.0.0")) == ["secret"]
    (tmp_path / "keys").write_text("one\n\n two\n")
    assert serve._keys_of(serve.Listening(api_key_file=str(tmp_path / "keys"))) == ["one", "two"]
    monkeypatch.delenv(serve.KEY)
    assert serve._keys_of(serve.Listening(host="0.0.0.0", insecure=True)) == []
