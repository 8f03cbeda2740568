"""Answers are judged by rules, and files of exercises that are wrong are refused in one line."""

import os
import signal
import time

import pytest
import yaml

from jaxgen.errors import ConfigError
from jaxgen.tutor import limited
from jaxgen.tutor.exercises import Exercise, read_exercises

FALL = {"name": "fall", "ask": "How far?", "number": 19.62, "tolerance": "1%",
        "unit": "m", "units": {"cm": 0.01}}  # fmt: skip
ANSWERS = {
    "19.62 m": True,
    "19.5m": True,
    "1962 cm": True,
    "1.962e1 m": True,
    "39.24/2 m": True,
    "19.4 m": False,
    "−19.62 m": False,
    "19.62 cm": False,
    "19.62 kg": False,
    "19.62": None,
    "19,62 m": None,
    "twenty m": None,
    "1/0 m": None,
    "1e999 m": False,
}


@pytest.mark.parametrize(("answer", "right"), ANSWERS.items())
def test_a_number_is_right_within_its_tolerance_and_unit(answer, right):
    assert Exercise(**FALL).check(answer).right is right


def test_an_exact_number_has_no_unit():
    exercise = Exercise(name="sum", ask="0.1 + 0.2?", number=0.3)
    assert [exercise.check(text).right for text in (".3", "3/10", "0.31", "0.3 m")] == [
        *(True, True),
        *(False, None),
    ]


def test_a_pattern_matches_the_whole_answer_in_bounded_time():
    vowel = Exercise(name="v", ask="A vowel?", pattern="(?i)[aeiou]")
    assert [vowel.check(text).right for text in ("E", " o ", "ab", "'")] == [True, True] + [
        False
    ] * 2
    slow = Exercise(name="s", ask="?", pattern="(a+)+b", seconds=0.5)
    begin, verdict = time.monotonic(), slow.check("a" * 40)
    assert not verdict.right and "longer than 0.5 s" in verdict.about
    assert time.monotonic() - begin < 5


CODE = {
    "right": ("def double(x):\n    return x + x", ""),
    "wrong": ("def double(x): return x", "AssertionError, line 1 of the test: assert double(4)"),
    "syntax": ("def double(x) return x", "SyntaxError: expected ':', line 1 of the answer"),
    "raises": (
        "def double(x): return 1 / 0",
        "ZeroDivisionError: division by zero, line 1 of the a",
    ),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "exits hard": ("import os; os._exit(0)", "ended the program before the test was over"),
    "claims": (
        'import os; os.write(1, b\'["x", ""]\\n\'); os._exit(0)',
        "ended the program before the test was over",
    ),
    "never ends": ("while True: pass", "longer than 1 s"),
    "memory": ("x = [0] * 10**8", "MemoryError"),
    "output": ("print('x' * 10**7)\ndef double(x): return 2 * x", ""),
    "file": ("open('x', 'w').write('x' * 10**8)", "File too large"),
    "network": ("import socket; socket.create_connection(('127.0.0.1', 9))", "may not use socket"),
    "process": ("import os; os.fork()", "may not use os.fork"),
    "prints": ('print(\'["", ""]\')\ndef double(x): return 2 * x', ""),
}


@pytest.mark.parametrize(("answer", "about"), CODE.values(), ids=CODE)
def test_code_is_tested_within_limits(answer, about):
    seconds = 1.0 if "longer" in about else 20.0
    test = "assert double(4) == 8"
    verdict = Exercise(name="d", ask="?", test=test, seconds=seconds, memory=512).check(answer)
    assert verdict.right is (not about) and about in verdict.about and "\n" not in verdict.about


def test_the_code_gets_no_environment_and_nothing_of_it_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "x")
    code = "import os\nhome = os.environ['HOME']\nopen('left', 'w').close()"
    test = "assert 'SECRET' not in os.environ\nassert os.path.isdir(home), home\nassert False, home"
    home = limited.run(code, test, 20.0, 512)[1].split(": ")[1].split(",")[0]
    assert home.startswith("/") and not os.path.exists(home)


BAD = {
    "no list": ({"exercises": {}}, "exercises must be a list; write"),
    "other key": ({"exercise": []}, "unknown key 'exercise' (did you mean 'exercises'?)"),
    "no name": (
        [{"ask": "?", "number": 1}],
        "exercises[0]: name=None must be a text; write name: ...",
    ),
    "ask is a number": ([{"name": "a", "ask": 1}], "exercises[0] (a): ask=1 must be a text"),
    "no rule": ([{"name": "a", "ask": "?"}], "it has none of number, pattern and test"),
    "two rules": (
        [{"name": "a", "ask": "?", "number": 1, "pattern": "x"}],
        "it has number and pattern of",
    ),
    "a typo": ([{"name": "a", "ask": "?", "nmber": 1}], "did you mean 'number'"),
    "text for a number": ([{"name": "a", "ask": "?", "number": "one"}], "number"),
    "no pattern": ([{"name": "a", "ask": "?", "pattern": "("}], "is no regular expression"),
    "no Python": ([{"name": "a", "ask": "?", "test": "assert ("}], "test is no Python"),
    "tolerance": ([{**FALL, "tolerance": "5 m"}], "tolerance='5 m' must be as 0.1 or 5%"),
    "negative": ([{**FALL, "tolerance": -1}], "tolerance=-1.0 must be as 0.1 or 5%"),
    "unit of size 0": ([{**FALL, "units": {"cm": 0}}], "units.cm=0.0 must be above 0"),
    "units of a pattern": ([{"name": "a", "ask": "?", "pattern": "x", "unit": "m"}], "need number"),
    "seconds": ([{"name": "a", "ask": "?", "test": "", "seconds": 0}], "must be above 0"),
    "two of a name": ([FALL, FALL], "two exercises are called 'fall'; rename one"),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line_with_file_entry_and_fix(rows, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(rows if isinstance(rows, dict) else {"exercises": rows}))
    with pytest.raises(ConfigError) as error:
        read_exercises(path)
    text = str(error.value)
    assert text.startswith(str(path)) and message in text and "\n" not in text


def test_limits_hold_processes_that_ignore_signals():
    answer = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"
    assert "longer than 1 s" in limited.run(answer, "", 1.0, 512)[1]
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
