"""`jaxgen generate`: prompts in, text out, and all is checked before a model is loaded."""

import dataclasses
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.profile import report, take
from jaxgen.profile.trace import Ran
from jaxgen.text import session as sessions
from jaxgen.text.batch_decoding import Alternative, Completion
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import NEEDS, Generation

PLAIN = Generation()


class Fake:
    """A session that says what it was asked."""

    tokenizer = SimpleNamespace(surface=SimpleNamespace(pieces=[b"a", b"b", b"\xff"]))

    def __init__(self, calls):
        self.calls = calls

    def stream(self, prompt, settings):
        self.calls.append(("stream", prompt, settings))
        if prompt == "too long":
            raise ConfigError("prompt has 99 tokens, max_new_tokens=3 do not fit")
        yield from (" one", " two")

    model = SimpleNamespace(generation_config=GenerationConfig())
    reads_sources = False

    def run(self, asked, *, detail):
        self.calls.append(("generate", asked, detail))
        return [
            [self.answer(f" {one.text}{i}", one.settings, detail) for i in range(n_texts(one))]
            for one in asked
        ]

    def answer(self, text, settings, detail):
        logprobs, top = ([-0.5, -1.0], [[Alternative(2, -0.1)], []]) if detail else ([], [])
        score = -2.5 if settings.beams else None
        return Completion(text, Reason.STOP, [0, 1], 3, logprobs, top, score)


def n_texts(asked):
    return asked.settings.n_best or asked.settings.samples


@pytest.fixture
def generate(jaxgen, calls, monkeypatch, tmp_path):
    """Call `jaxgen generate model ...`."""
    (tmp_path / "model").mkdir()

    def open_run(folder, *, weights, step=None, adapter=()):
        calls.append(("open_run", folder, weights))
        return Fake(calls)

    monkeypatch.setattr(sessions, "open_session", open_run)
    return lambda *words, **options: jaxgen("generate", "model", *words, **options)


def test_a_prompt_is_echoed_and_its_completion_streamed(generate, calls):
    shown = generate("--prompt", "The")
    assert (shown.code, shown.out) == (0, "The one two\n")
    assert calls[-1] == ("stream", "The", PLAIN)


def test_weights_are_plain_or_rounded_and_nothing_else(generate, calls):
    generate("--prompt", "The")
    generate("--prompt", "The", "--weights", "int8")
    opened = [call for call in calls if call[0] == "open_run"]
    assert opened == [("open_run", Path("model"), "plain"), ("open_run", Path("model"), "int8")]
    refused = generate("--prompt", "The", "--weights", "int4")
    assert refused.code == 2 and "int4" in refused.err and "int8" in refused.err


@pytest.mark.parametrize(("more", "kind"), [([], "stream"), (["--json"], "generate")])
def test_a_profile_is_of_the_same_texts_made_once_more(
    generate, calls, monkeypatch, tmp_path, more, kind
):
    found = report.summarize([Ran("jit_f", "dot.1", "dot.1", 0.0, 2.0)], {})

    def of(call, folder):
        calls.append(("traced", folder))
        call()
        return folder / "here", found

    monkeypatch.setattr(take, "of", of)
    plain = generate("--prompt", "The", *more)
    once = [call for call in calls if call[0] == kind]
    shown = generate("--prompt", "The", "--profile", *more)
    assert (shown.code, shown.out) == (0, plain.out)
    assert [call for call in calls if call[0] == kind] == 3 * once
    assert calls[-2] == ("traced", Path("model/profile"))
    assert "profile: 2 s; trace: model/profile/here" in shown.err and "dot.1" in shown.err


def test_a_profile_needs_a_prompt_and_a_folder_that_can_be_written(generate, calls, tmp_path):
    refused = generate("--profile", typed=b"")
    assert refused.code == 2 and "--profile and --samples need a --prompt" in refused.err
    (tmp_path / "model" / "profile").touch()
    refused = generate("--prompt", "The", "--profile")
    assert refused.code == 3 and "profile" in refused.err and refused.err.count("\n") == 1
    assert "open_run" not in [call[0] for call in calls]


VALUES = {
    "overflow": "cut",
    "early_stopping": True,
    "dola": "low",
    "bias": ("a=1",),
}
FLAGS = ("bool", "bool | None")
TOGETHER = {"groups": ("beams", "diversity"), "diversity": ("beams", "groups")}
TOGETHER |= {"negative_prompt": ("guidance",)}  # or debias


def test_every_setting_is_an_option_and_reaches_the_session(generate, calls):
    for field in dataclasses.fields(Generation):
        partners = tuple(other for one, other in NEEDS if one == field.name)
        given = {}
        for name in (field.name, *TOGETHER.get(field.name, partners)):
            hint = Generation.__dataclass_fields__[name].type
            usual = 0.5 if "float" in hint else 2 if "int" in hint else hint in FLAGS or "x y"
            value = VALUES.get(name, usual)
            given[name] = (value,) if "tuple" in hint and not isinstance(value, tuple) else value
        words = []
        for name, value in given.items():
            shown = value[0] if isinstance(value, tuple) else value
            words += [
                f"--{name.replace('_', '-')}",
                *[str(shown)] * (shown is not True or name in VALUES),
            ]
        shown = generate("--prompt", "-x", *words, "--json")
        assert shown.code == 0, (words, shown.err)
        settings = calls[-1][1][0].settings
        assert settings == Generation(**given) and settings.gives(field.name), words


def test_several_prompts_and_samples_are_one_batch(generate, calls):
    shown = generate("--prompt", "a", "--prompt", "b", "--samples", "2")
    several = Generation(samples=2)
    assert calls[-1] == ("generate", [Prompt("a", several, 0), Prompt("b", several, 2)], False)
    texts = ["a a0", "a a1", "b b0", "b b1"]
    assert shown.out == "".join(f"=== {i + 1} of 4\n{t}\n\n" for i, t in enumerate(texts))


def test_json_tells_tokens_probabilities_scores_and_the_end(generate, calls):
    shown = generate("--prompt", "a", "--beams", "2", "--n-best", "2", "--json")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert calls[-1][2] is True
    assert rows[1] == {
        "prompt": "a",
        "sample": 2,
        "completion": " a1",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "score": -2.5,
        "tokens": [
            {
                "id": 0,
                "text": "a",
                "logprob": -0.5,
                "top": [{"id": 2, "text": "\ufffd", "logprob": -0.1}],
            },
            {"id": 1, "text": "b", "logprob": -1.0},
        ],
    }


def test_lines_of_a_file_have_settings_of_their_own(generate, calls, tmp_path):
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "temperature": 0.0, "stop": ["x"]},
        {"prompt": "c", "seed": 7},
        {"prompt": "d"},
    ]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    shown = generate("--prompts-file", "p.jsonl", "--top-p", "0.5")
    assert shown.code == 0
    plain = Generation(top_p=0.5)
    assert calls[-1][1] == [
        Prompt("a", plain, 0),
        Prompt("b", dataclasses.replace(plain, temperature=0.0, stop=("x",)), 1),
        Prompt("c", dataclasses.replace(plain, seed=7), 0),
        Prompt("d", plain, 2),
    ]


def test_prompts_come_from_files_and_standard_input(generate, calls, tmp_path):
    (tmp_path / "p.txt").write_bytes("naïve\r\n".encode())
    words = ("--prompt", "@p.txt", "--prompt", "-", "--prompt", "@@home")
    generate(*words, stdin="\ufeffzwei\nlines\n\n".encode())
    assert [one.text for one in calls[-1][1]] == ["naïve", "zwei\nlines\n", "@home"]


def test_without_prompt_and_terminal_standard_input_is_the_prompt(generate, calls):
    assert generate(stdin=b"hello\n").out == "hello one two\n"


def test_on_a_terminal_each_line_is_completed_until_the_end_of_input(generate, calls):
    shown = generate("--seed", "7", typed=b"one\n\ntoo long\ntwo\n")
    assert shown.code == 0
    made = [(call[1], call[2].seed) for call in calls if call[0] == "stream"]
    assert made == [("one", 7), ("too long", 8), ("two", 9)]
    assert "one one two\n" in shown.out and "two one two\n" in shown.out
    assert "jaxgen: error: prompt has 99 tokens" in shown.err


def test_a_prompt_that_the_model_refuses_is_not_printed(generate):
    shown = generate("--prompt", "too long")
    assert (shown.code, shown.out) == (2, "")
    wanted = "jaxgen: error: prompt has 99 tokens, --max-new-tokens=3 do not fit\n"
    assert shown.err == wanted


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
    (["--prompt", "a", "--seed", "18446744073709551616"], "--seed=18446744073709551616"),
    (["--prompt", "a", "--seed", "-1"], "--seed=-1"),
    (["--prompt", "a", "--beams", "0"], "--beams=0"),
    (["--prompt", "a", "--beams", "2", "--temperature", "0.7"], "--temperature=0.7", "--beams=2"),
    (["--prompt", "a", "--beams", "2", "--samples", "2"], "--samples=2", "--beams=2", "--n-best"),
    (["--prompt", "a", "--beams", "2", "--lookup", "3"], "--beams=2", "--lookup=3"),
    (["--prompt", "a", "--beams", "4", "--groups", "3", "--diversity", "1"], "--groups=3"),
    (["--prompt", "a", "--beams", "2", "--n-best", "3"], "--n-best=3", "--beams=2"),
    (["--prompt", "a", "--n-best", "3"], "--n-best=3", "--beams"),
    (["--prompt", "a", "--samples", "2", "--temperature", "0"], "--samples=2", "temperature=0"),
    (["--prompt", "a", "--contrastive", "0.6"], "--contrastive=0.6", "--top-k"),
    (["--prompt", "a", "--contrastive", "1.5", "--top-k", "4"], "--contrastive=1.5"),
    (["--prompt", "a", "--dola", "low", "--guidance", "2"], "--dola=low", "--guidance=2.0"),
    (["--prompt", "a", "--dola", "middle"], "--dola", "middle"),
    (["--prompt", "a", "--regex", "a", "--choices", "b"], "--regex=a", "--choices=b"),
    (["--prompt", "a", "--negative-prompt", "b"], "--negative-prompt=b", "--guidance"),
    (["--prompt", "a", "--watermark-bias", "2"], "--watermark-bias=2.0", "without --watermark"),
    (["--prompt", "a", "--repetition-penalty", "0"], "--repetition-penalty=0.0"),
    (["--prompt", "a", "--stop", ""], "--stop='' is empty"),
    (["--prompt", "a", "--stop-ids", "x"], "--stop-ids", '"x"'),
    (["--prompt", "a", "--max-seconds", "1", "--beams", "2"], "--max-seconds=1.0", "--beams=2"),
    (["--prompt", "a", "--min-new-tokens", "9", "--max-new-tokens", "3"], "--min-new-tokens=9"),
    (["--prompt", "a", "--top-logprobs", "2"], "--top-logprobs=2", "--json"),
    (["--prompt", "a", "--prompts-file", "b"], "--prompts-file=b", "--prompt=a"),
    (["--prompts-file", "no.jsonl"], "no.jsonl"),
    (["--prompt", "@nowhere.txt"], "nowhere.txt", "@@nowhere.txt"),
    (["--prompt", "-", "--prompt", "-"], "twice"),
    (["--prompt", "\udcff"], "not UTF-8"),
    (["--prompt", "a", "--output", "model"], "'model' is a folder"),
    (["--prompt", "a", "--output", "no/where.txt"], "no/where.txt can't be written"),
    (["--prompt", "a", "--temprature", "1"], "'--temprature'", "did you mean '--temperature'?"),
    (["--prompt", "a", "--until", "full"], "'--until'", "did you mean '--early-stopping'?"),
    (["--prompt"], "--prompt needs a value"),
    (["a stray"], "unexpected 'a stray'", "write --prompt 'a stray'"),
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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["p.jsonl has no line"]),
        ('{"prompt": "a"}\n{"prompt":', ["p.jsonl:2 is no JSON"]),
        ('["a"]', ["p.jsonl:1", "object"]),
        ('{"prompt": 3}', ["p.jsonl:1", "prompt"]),
        ('{"prompt": ""}', ["p.jsonl:1 is empty"]),
        ('{"prompt": "a", "beems": 3}', ["p.jsonl:1", "'beems'", "did you mean 'beams'?"]),
        ('{"prompt": "a", "beams": "3"}', ["p.jsonl:1", ": beams='3'"]),
        ('{"prompt": "a", "do_sample": false, "top_p": 0.5}', ["p.jsonl:1", ": top_p=0.5"]),
        ('{"prompt": "a", "dola": "most"}', ["p.jsonl:1", "dola='most'"]),
        ('{"prompt": "a", "until": "full"}', ["p.jsonl:1", "did you mean 'early_stopping'?"]),
        ('{"prompt": "a", "--max-new-tokens": 2}', ["p.jsonl:1", "did you mean 'max_new_tokens'"]),
        ('{"prompt": "a", "top_p": 2.0}', ["p.jsonl:1", "top_p=2.0"]),
        ("The king", ["p.jsonl:1 is no JSON", 'as {"prompt": ...}', "--prompt @p.jsonl"]),
    ],
)
def test_a_line_that_can_not_be_is_refused_with_its_place(generate, calls, tmp_path, text, parts):
    (tmp_path / "p.jsonl").write_text(text)
    shown = generate("--prompts-file", "p.jsonl")
    assert shown.code == 2 and not calls and shown.err.count("\n") == 1
    assert all(part in shown.err for part in parts), shown.err


def test_output_is_written_whole_and_nothing_is_printed(generate, tmp_path):
    (tmp_path / "out.txt").write_text("old")
    shown = generate("--prompt", "a", "--output", "out.txt")
    assert shown.out == "" and (tmp_path / "out.txt").read_text() == "a a0\n"
    generate("--prompt", "a", "--samples", "2", "--output", "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [rows[1][key] for key in ("prompt", "sample", "completion")] == ["a", 2, " a1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out.jsonl", "out.txt"]


def test_a_failed_generation_leaves_the_output_as_it_was(generate, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ConfigError("prompt has 99 tokens but context=16")

    monkeypatch.setattr(Fake, "run", fail)
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
from types import SimpleNamespace
from jaxgen.pretrained.generation_config import GenerationConfig
from jaxgen.text import session as sessions
from jaxgen.cli import app, start
class Session:
    model = SimpleNamespace(generation_config=GenerationConfig())
    reads_sources = False
    def stream(self, prompt, settings):
        yield from (" and", " so", " on", "\\x1b[31m")
start.prepare_jax = lambda cache: None
sessions.open_session = lambda folder, **_: Session()
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
