"""`jaxgen generate`: prompts in, text out, and all is checked before a model is loaded."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from jaxgen.errors import ConfigError
from jaxgen.text import complete

PLAIN = {"length": None, "temperature": 0.8, "top_k": None, "top_p": None, "seed": 0}


class Fake:
    """A session that says what it was asked."""

    def __init__(self, calls):
        self.calls = calls

    def stream(self, prompt, **options):
        self.calls.append(("stream", prompt, options))
        if prompt == "too long":
            raise ConfigError("prompt has 99 tokens")
        yield from (" one", " two")

    def complete(self, prompts, *, samples, **options):
        self.calls.append(("complete", prompts, samples, options))
        return [f" {p}{i}" for p in prompts for i in range(samples)]


@pytest.fixture
def generate(jaxgen, calls, monkeypatch, tmp_path):
    """Call `jaxgen generate model ...`."""
    (tmp_path / "model").mkdir()

    def open_run(folder):
        calls.append(("open_run", folder))
        return Fake(calls)

    monkeypatch.setattr(complete, "open_run", open_run)
    return lambda *words, **options: jaxgen("generate", "model", *words, **options)


def test_a_prompt_is_echoed_and_its_completion_streamed(generate, calls):
    shown = generate("--prompt", "The")
    assert (shown.code, shown.out) == (0, "The one two\n")
    assert calls[-1] == ("stream", "The", PLAIN)


def test_options_reach_the_session(generate, calls):
    words = "--max-new-tokens 5 --temperature 0 --top_k 3 --top-p 0.5 --seed 18446744073709551615"
    assert generate("--prompt", "-x", *words.split()).code == 0
    wanted = {"length": 5, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "seed": 2**64 - 1}
    assert calls[-1] == ("stream", "-x", wanted)


def test_several_prompts_and_samples_are_one_batch(generate, calls):
    shown = generate("--prompt", "a", "--prompt", "b", "--samples", "2")
    assert calls[-1] == ("complete", ["a", "b"], 2, PLAIN)
    texts = ["a a0", "a a1", "b b0", "b b1"]
    assert shown.out == "".join(f"=== {i + 1} of 4\n{t}\n\n" for i, t in enumerate(texts))


def test_prompts_come_from_files_and_standard_input(generate, calls, tmp_path):
    (tmp_path / "p.txt").write_bytes("naïve\r\n".encode())
    words = ("--prompt", "@p.txt", "--prompt", "-", "--prompt", "@@home")
    generate(*words, stdin="\ufeffzwei\nlines\n\n".encode())
    assert calls[-1][1] == ["naïve", "zwei\nlines\n", "@home"]


def test_without_prompt_and_terminal_standard_input_is_the_prompt(generate, calls):
    assert generate(stdin=b"hello\n").out == "hello one two\n"


def test_on_a_terminal_each_line_is_completed_until_the_end_of_input(generate, calls):
    shown = generate("--seed", "7", typed=b"one\n\ntoo long\ntwo\n")
    assert shown.code == 0
    made = [(call[1], call[2]["seed"]) for call in calls if call[0] == "stream"]
    assert made == [("one", 7), ("too long", 8), ("two", 9)]
    assert "one one two\n" in shown.out and "two one two\n" in shown.out
    assert "jaxgen: error: prompt has 99 tokens" in shown.err


def test_a_prompt_that_the_model_refuses_is_not_printed(generate):
    shown = generate("--prompt", "too long")
    assert (shown.code, shown.out) == (2, "")
    assert shown.err == "jaxgen: error: prompt has 99 tokens\n"


REFUSED = [
    (["--prompt", ""], "empty"),
    (["--prompt", "a", "--temperature", "-1"], "--temperature=-1.0"),
    (["--prompt", "a", "--temperature", "nan"], "--temperature", "'nan'"),
    (["--prompt", "a", "--temperature", "1e400"], "--temperature", "'1e400'"),
    (["--prompt", "a", "--top-p", "0"], "--top-p=0.0"),
    (["--prompt", "a", "--top-p", "1.01"], "--top-p=1.01"),
    (["--prompt", "a", "--top-k", "0"], "--top-k=0"),
    (["--prompt", "a", "--top-k", "1.5"], "--top-k", "'1.5'"),
    (["--prompt", "a", "--samples", "0"], "--samples=0"),
    (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens=0"),
    (["--prompt", "a", "--seed", "18446744073709551616"], "2^64"),
    (["--prompt", "a", "--seed", "-1"], "--seed=-1"),
    (["--prompt", "@nowhere.txt"], "nowhere.txt", "@@nowhere.txt"),
    (["--prompt", "-", "--prompt", "-"], "twice"),
    (["--prompt", "\udcff"], "not UTF-8"),
    (["--prompt", "a", "--output", "model"], "'model' is a folder"),
    (["--prompt", "a", "--output", "no/where.txt"], "no/where.txt can't be written"),
    (["--prompt", "a", "--temprature", "1"], "'--temprature'", "did you mean '--temperature'?"),
    (["--prompt"], "--prompt needs a value"),
    (["stray"], "unexpected 'stray'"),
]


@pytest.mark.parametrize(("words", "parts"), [(r[0], r[1:]) for r in REFUSED])
def test_what_is_out_of_range_is_refused_before_a_model_is_loaded(generate, calls, words, parts):
    shown = generate(*words)
    assert (shown.code, shown.out) == (2, "")
    assert re.fullmatch(r"jaxgen: error: [^\n]+\n", shown.err)
    assert all(part in shown.err for part in parts), shown.err
    assert not calls


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["standard input is empty"]),
        (b"\n", ["standard input is empty"]),
        (b"ab\xff", ["standard input is not UTF-8", "0xff at offset 2"]),
        (b"\xef\xbb\xbfab\xff", ["0xff at offset 5"]),
        ("ab".encode("utf-16"), ["0xff at offset 0"]),
    ],
)
def test_unusable_standard_input_is_refused_with_the_place(generate, calls, raw, parts):
    shown = generate(stdin=raw)
    assert shown.code == 2 and not calls
    assert all(part in shown.err for part in parts), shown.err


def test_output_is_written_whole_and_nothing_is_printed(generate, tmp_path):
    (tmp_path / "out.txt").write_text("old")
    shown = generate("--prompt", "a", "--output", "out.txt")
    assert shown.out == "" and (tmp_path / "out.txt").read_text() == "a a0\n"
    generate("--prompt", "a", "--samples", "2", "--output", "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[1] == {"prompt": "a", "sample": 2, "completion": " a1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out.jsonl", "out.txt"]


def test_a_failed_generation_leaves_the_output_as_it_was(generate, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ConfigError("prompt has 99 tokens but context=16")

    monkeypatch.setattr(Fake, "complete", fail)
    (tmp_path / "out.txt").write_text("old")
    assert generate("--prompt", "a", "--output", "out.txt").code == 2
    assert (tmp_path / "out.txt").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out.txt"]


def test_output_to_a_device_or_a_link_does_not_replace_it(generate, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert generate("--prompt", "a", "--output", "pipe").code == 0
    assert os.read(reader, 100) == b"a a0\n"
    os.close(reader)
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    generate("--prompt", "a", "--output", "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "a a0\n"


PROGRAM = """
import sys
from jaxgen.text import complete
from jaxgen.cli import app, start
class Session:
    def stream(self, prompt, **options):
        yield from (" and", " so", " on", "\\x1b[31m")
start.prepare_jax = lambda cache: None
complete.open_run = lambda folder: Session()
sys.exit(app.main(["generate", sys.argv[1]]))
"""


def test_the_interactive_loop_on_a_real_terminal(tmp_path):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "dumb"},
    )
    os.close(terminal)
    shown = b""

    def until(part):
        nonlocal shown
        while part not in shown:
            shown += os.read(controller, 4096)

    until(b"> ")
    os.write(controller, b"hello\n")
    until(b"hello and so on")
    until(b"\xe2\x90\x9b[31m")  # an escape sequence in a text is shown, not obeyed
    shown = shown[shown.index(b"\xe2\x90\x9b[31m") :]
    until(b"> ")
    os.write(controller, b"\x04")
    assert process.wait(20) == 0
    os.close(controller)
    assert b"\x1b[31m" not in shown
