"""Policies: what rules match, how texts are shown in pieces, personal data, and the audit log."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.cli import app
from jaxgen.errors import ConfigError, DataError
from jaxgen.safety import audit, personal
from jaxgen.safety.policy import Policy, Rule, read_policy
from jaxgen.safety.stream import WindowFilter
from jaxgen.text import moderation


def policy(action="mask", **rule):
    return Policy(rules=(Rule(name="rule", action=action, **rule),))


def shown(rules, text, *, before="", cuts=None):
    """Return what is shown of a text that comes in pieces of these sizes, in one without."""
    stream, parts, at = rules.text_filter(before), [], 0
    for size in cuts or [len(text)]:
        parts.append(stream.push(text[at : at + size]))
        at += size
    return "".join((*parts, stream.push(text[at:]), stream.flush()))


SPELLINGS = [
    "bad", "BAD", "bád", "ba\u0301d", "ｂａｄ", "b4d", "b@d", "8ad", "bаd", "вad", "b\u200bad",
    "b\u00ada\u2060d", "𝐛𝐚𝐝", "ⓑⓐⓓ", "🅱🅰🅳", "🇧🇦🇩", "Ƀⱥđ", "ʙᴀᴅ", "b̶a̶d", "b⍺d",
    "b\x00a\x7fd",
]  # fmt: skip


@pytest.mark.parametrize("word", SPELLINGS)
def test_a_word_is_found_however_it_is_spelled(word):
    assert shown(policy(words=("bad",)), f"a {word} one") == "a *** one"


@pytest.mark.parametrize(
    ("word", "text", "wanted"),
    [
        ("脏话", "这是脏话吗", "这是***吗"),
        ("くそ", "これはくそです", "これは***です"),
        ("ควาย", "นี่คือควายนะ", "นี่คือ***นะ"),
        ("bad", "这是bad吗, 这是bads", "这是***吗, 这是bads"),
        ("bad脏", "a bad脏话, forbad脏", "a ***话, forbad脏"),
        ("плохо", "неплохо, плохо", "неплохо, ***"),
    ],
)
def test_words_end_where_their_script_shows_it(word, text, wanted):
    assert shown(policy(words=(word,)), text) == wanted
    assert shown(policy(words=(word,), fold="plain"), text) == wanted


@pytest.mark.parametrize("text", ["badly", "forbad", "b ad", "bd", "bid", "baed", "b_ad"])
def test_what_is_another_word_is_left_alone(text):
    assert shown(policy(words=("bad",)), text) == text


def test_words_have_accents_blanks_and_letters_of_two():
    rules = policy(words=("Straße", "to be", "œuvre", "ﬁne"))
    assert shown(rules, "strasse STRASSE, to  BE, to\nbe; œuvre, fine") == (
        "*** ***, ***, ***; ***, ***"
    )
    assert shown(policy(words=("be",), whole=False), "rebel") == "re***l"
    assert shown(policy(words=("bad",), fold="none"), "Bad b4d bad") == "Bad b4d ***"


def test_matches_that_overlap_are_one_mask_and_the_longest_counts():
    rules = policy(regex=("ab", "b?cz", r"x\d{1,4}"))
    assert shown(rules, "abcz abcy cz x12345") == "*** ***cy *** ***5"


def test_a_rule_that_stops_ends_the_text_before_it():
    rules = Policy(rules=(
        Rule(name="stop", regex=("end",), action="stop"),
        Rule(name="mask", words=("bad",), action="mask"),
    ))  # fmt: skip
    stream = rules.text_filter()
    assert stream.push("a bad en") == "a *** " and stream.push("d of it") == ""
    assert stream.ended_by is not None and stream.push("more") == "" and stream.flush() == ""


def test_a_match_may_begin_in_the_prompt_and_what_stands_there_is_let_be():
    rules = policy("stop", words=("password",))
    assert shown(rules, "word, he said", before="the pass") == ""
    assert shown(rules, " was password", before="the password") == " was "
    assert shown(policy(words=("ass",)), "ass", before="cl") == "ass"


LETTERS = st.text("abdBD4\u200b -@.é1", max_size=24)
RULES = policy(words=("bad", "bad da"), regex=(r"[ab]{1,5}@d\.b\b", "1{2,4}"))


@settings(max_examples=60, deadline=None)
@given(LETTERS, st.lists(st.integers(1, 5), max_size=24))
def test_pieces_of_any_size_show_the_same_and_hold_back_no_more_than_a_rule(text, cuts):
    assert shown(RULES, text, cuts=cuts) == shown(RULES, text)
    stream, longest, given_text = RULES.text_filter(), len("bad") + 8 + len("da"), ""
    for character in text:
        stream.push(character)
        given_text += character
        held = given_text[stream._base :]  # what has not been shown
        assert len(held.replace("\u200b", "")) <= longest


@settings(max_examples=50, deadline=None)
@given(st.text("abdBD4 -.é", max_size=12))
def test_expressions_match_as_those_of_python_do(text):
    """Leftmost and longest; overlapping matches are one."""
    pattern = r"\b(?:ab|b[aD]?\.|\dd{1,3}|-[^ab]{2})\b|é"
    rules = policy(regex=(pattern,), fold="none")
    covered = [False] * len(text)
    for begin in range(len(text)):
        for end in range(begin + 1, len(text) + 1):
            ending = rf"(?:{pattern})(?<=\A[\s\S]{{{end}}})"
            if re.compile(ending).match(text, begin):
                covered[begin:end] = [True] * (end - begin)
    expected = "".join(one for one, hidden in zip(text, covered, strict=True) if not hidden)
    assert shown(rules, text).replace("***", "") == expected


@pytest.mark.parametrize(
    "text", ["", "plain", "naïve café 日本語 12345\n\t\U0001f600", "b\u0300" * 40]
)
def test_allowed_text_is_untouched(text):
    assert shown(RULES, text) == text


# Personal data


def a_card(rng):
    begin, length = rng.choice([("4", 16), ("55", 16), ("34", 15), ("6011", 16), ("36", 14)])
    body = begin + "".join(rng.choices("0123456789", k=length - len(begin) - 1))
    return next(body + last for last in "0123456789" if personal.luhn(body + last))


def an_iban(rng):
    country, length = rng.choice(sorted(personal.IBAN_LENGTHS.items()))
    body = "".join(rng.choices("0123456789", k=length - 4))
    number = int("".join(str(int(one, 36)) for one in f"{body}{country}00"))
    return f"{country}{98 - number % 97:02}{body}"


@pytest.mark.parametrize(("kind", "make"), [("card", a_card), ("iban", an_iban)])
def test_all_valid_numbers_are_found_and_no_invalid_one(kind, make):
    rng, rules = random.Random(0), policy(personal=(kind,))
    for _ in range(300):
        number = make(rng)
        laid = " ".join(re.findall(".{1,4}", number)) if rng.random() < 0.5 else number
        assert shown(rules, f"it is {laid}, he said") == "it is ***, he said"
        at = rng.choice([i for i, one in enumerate(number) if one.isdigit()])
        digit = str((int(number[at]) + rng.randrange(1, 10)) % 10)
        wrong = f"it is {number[:at]}{digit}{number[at + 1 :]}, he said"
        assert shown(rules, wrong) == wrong


FOUND = {
    "email": [
        "ann@example.com", "a.b+c@mail.example.co.uk", "ANN_LEE@EXAMPLE.ORG", "x@y.io",
        "o'neil@example.ie", "user%dept@host-name.net", "1234@numbers.de",
        "first.last@sub.dom.example.com", "jürgen@bücher.example.de",
    ],
    "phone": [
        "+1 212 555 0123", "+44 20 7946 0958", "(212) 555-0123", "212-555-0123", "212.555.0123",
        "+49 (30) 901820", "0033 1 70 18 99 00", "+81-3-1234-5678", "1-800-555-0199", "2125550123",
    ],
    "key": [
        "sk-abcdefghij0123456789", "ghp_" + "a1B2" * 9, "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789-abcDEF", "xoxe.xoxp-1-" + "Ab0" * 55, "xoxe-1-" + "Mi0xLT" * 25,
        "xapp-1-A012ABCD0EF-2489451744666-" + "bfe134bb" * 8,
        "xoxc-8457637785707-4270930576081-1605019044329-" + "30d7846f" * 8,
        "hooks.slack.com/services/T012ABCDE/B0123ABCD/" + "a1B2" * 6,
        "AIza" + "Sy0aB" * 7, "hf_" + "aB3" * 11,
        "glpat-abcdef0123456789abcd", "-----BEGIN RSA PRIVATE KEY-----",
    ],
    "card": [
        "4111 1111 1111 1111", "378282246310005", "6011-1111-1111-1117",
        "\uff15" * 12 + "\uff14" * 4,
    ],
    "iban": [
        "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "fr1420041010050500013m02606",
    ],
}  # fmt: skip
# Formats that are not looked for: they count against the recall that is stated.
MISSED = {
    "phone": ["030 901820", "01 70 18 99 00"],
    "email": ["ann at example dot com", "ann@localhost"],
}
OTHERS = [
    "version 3.14.15", "2024-11-30 12:00:01", "978-3-16-148410-0", "192.168.100.200", "a@b",
    "@handle", "4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "ghp_short", "1,234,567,890",
    "12345678901234",
    "sk-learn is a library", "room 555-0123", "123-45-6789",
]  # fmt: skip


def test_the_recall_on_a_labelled_list_is_as_stated():
    rules = policy(personal=tuple(FOUND))
    found = [
        shown(rules, f"It is {one} here.") == "It is *** here."
        for row in FOUND.values()
        for one in row
    ]
    missed = [shown(rules, one) == one for row in MISSED.values() for one in row]
    assert all(found) and all(missed)
    assert len(found) / (len(found) + len(missed)) > 0.89
    assert [one for one in OTHERS if shown(rules, one) != one] == []


# Classifiers


def test_a_classifier_reads_windows_before_they_are_shown_whatever_the_pieces():
    read = []

    def judge(text):
        read.append(text)
        return float("bad" in text)

    texts = []
    for size in (1, 3, 40):
        stream, text, out = (
            WindowFilter("x", judge, 0.5, 8),
            "all is well so far, then bad things",
            "",
        )
        for at in range(0, len(text), size):
            out += stream.push(text[at : at + size])
        texts.append(out + stream.flush())
    assert texts == ["all is well so far, then"] * 3 and max(map(len, read)) <= 8


# The file and the log


def write(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "p.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", r"p.yaml: rules=\[\] is empty"),
        ("rules:\n- {name: a}", "rule 'a' is empty; give words"),
        ("rules:\n- {words: [b]}", "has no name"),
        ("rules:\n- {name: a, words: [b]}\n- {name: a, words: [c]}", "two rules are called 'a'"),
        ("rules:\n- {name: a, regex: ['x*']}", "matches the empty text"),
        ("rules:\n- {name: a, regex: ['(']}", "can't be compiled"),
        ("rules:\n- {name: a, regex: ['a+']}", "bound its repeats"),
        ("rules:\n- {name: a, regex: ['a(?=b)']}", "a look-around, which can't be followed"),
        ("rules:\n- {name: a, regex: ['(a)\\1']}", "a back-reference"),
        ("rules:\n- {name: a, regex: ['^a']}", "an anchor"),
        ("rules:\n- {name: a, regex: ['[[:alpha:]]']}", "Possible nested set"),
        ("rules:\n- {name: a, regex: ['.']}", "any one character, so that nothing can be said"),
        ("rules:\n- {name: a, words: ['\u200b']}", "nothing but blanks, marks or invisible"),
        ("rules:\n- {name: a, word: [b]}", "word"),
        ("rules:\n- {name: a, words: [b], action: ban}", "not one of forbid, mask, stop"),
        ("rules:\n- {name: a, personal: [card]}", "can't be of personal data"),
        ("rules:\n- {name: a, personal: [name], action: mask}", "not one of card, iban"),
        ("rules:\n- {name: a, words_file: no.txt}", "No such file"),
        ("rules:\n- {name: a, words: [b], action: mask, where: [prompt]}", "can't be of a prompt"),
        ("classifiers:\n- {name: a, model: m}", "classifier 'a' has no label"),
        ("classifiers:\n- {name: a, model: m, label: x, threshold: 2}", "must be above 0"),
        ("classifier: {}", "classifier"),
        ("classifiers: {name: a}", "classifiers is a list"),
        ("rules:\n- {name: a, regex: [b], whole: false}", "no effect without words"),
        ("rules:\n- {name: a, words: [b]}\naudit_text: true", "no effect without audit"),
        ("rules:\n- {name: a, words: [b\n", r"3:1: while .* but got the end of the file; correct"),
        ("rules:\n  - name: a\n words: [b]\n", "found a line of more indent; correct the YAML"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_policy(write(tmp_path, text))
    assert "\n" not in str(caught.value) and "p.yaml" in str(caught.value)


def test_texts_are_moderated_and_the_log_holds_none_of_them(tmp_path):
    (tmp_path / "words.txt").write_text("# insults\nbad\n", encoding="utf-8")
    rules = read_policy(write(
        tmp_path, "rules:\n- {name: words, words_file: words.txt}\n"
        "- {name: out, regex: [zz], action: stop}\naudit: log.jsonl"
    ))  # fmt: skip
    texts = ["a BAD one", "well", "so zz what"]
    assert moderation.moderate(rules, texts) == [
        ("a *** one", ("words",)), ("well", ()), ("so ", ("out",)),
    ]  # fmt: skip
    raw = (tmp_path / "log.jsonl").read_text()
    assert audit.verify(tmp_path / "log.jsonl") == 2 and "BAD" not in raw
    assert json.loads(raw.splitlines()[0])["characters"] == [2, 5]


@pytest.mark.parametrize(("audit_text", "held"), [("false", False), ("true", True)])
def test_the_log_holds_what_matched_if_asked(tmp_path, audit_text, held):
    rules = f"rules: [{{name: a, words: [bad]}}]\naudit: log.jsonl\naudit_text: {audit_text}"
    moderation.moderate(read_policy(write(tmp_path, rules)), ["a BAD one"])
    assert ('"text": "BAD"' in (tmp_path / "log.jsonl").read_text()) == held


@pytest.mark.parametrize(
    ("fold", "masked"),
    [
        ({}, "*** B4D *** *** ***"), ({"fold": "full"}, "*** *** *** *** ***"),
        ({"fold": "none"}, "*** B4D ba\u200bd ｂａｄ ***"),
    ],
)  # fmt: skip
def test_a_folding_says_what_an_expression_reads(fold, masked):
    assert shown(policy(regex=("b[ab]d",), **fold), "bad B4D ba\u200bd ｂａｄ bad") == masked


def test_a_classifier_lies_beside_its_policy_or_has_a_name(tmp_path):
    (tmp_path / "judge").mkdir()
    rules = "classifiers: [{name: a, model: judge, label: x}, {name: b, model: org/x, label: x}]"
    models = [one.model for one in read_policy(write(tmp_path, rules)).classifiers]
    assert models == [str(tmp_path / "judge"), "org/x"]


def test_the_verb_shows_texts_and_counts_what_each_rule_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    rules = "rules: [{name: a, words: [bad]}, {name: b, regex: [zz], action: stop}]\naudit: log"
    file, texts, output = write(tmp_path, rules), tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    texts.write_text('{"text": "a bad one"}\n{"text": "well"}\n{"text": "so zz"}\n')
    how = ["--policy", str(file)]
    assert app.main(["moderate", str(texts), *how, "--output", str(output)]) == 0
    assert "2 of 3 texts changed; a: 1; b: 1" in capsys.readouterr().err
    assert list(map(json.loads, output.read_text().splitlines())) == [
        {"text": "a *** one", "rules": ["a"]}, {"text": "well", "rules": []},
        {"text": "so ", "rules": ["b"]},
    ]  # fmt: skip
    words = ["moderate", "--verify-log", str(tmp_path / "log")]
    assert app.main([*words, "--output", str(tmp_path / "o")]) == 2 and app.main(words) == 0
    assert "2 lines, as they were written" in capsys.readouterr().out
    plain = tmp_path / "x.txt"
    plain.write_text("so bad\n")
    assert app.main(["moderate", str(plain), *how]) == 0
    assert capsys.readouterr().out == "so ***\n"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("no.txt", None, 2), ("x.txt", b"\xff", 7), ("x.txt", b"", 7), ("x.jsonl", b"", 7),
        ("x.jsonl", b"{", 7), ("x.jsonl", b'{"tex": ""}', 7), ("x.jsonl", b'{"text": 3}', 7),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read_end_as_other_data_does(tmp_path, name, content, code):
    file = write(tmp_path, "rules: [{name: a, words: [bad]}]")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert app.main(["moderate", str(tmp_path / name), "--policy", str(file)]) == code


@pytest.mark.parametrize("damage", ["change", "remove", "swap", "cut"])
def test_a_log_that_was_touched_is_told(tmp_path, damage):
    log = tmp_path / "log.jsonl"
    for number in range(3):
        audit.append(log, {"rule": f"r{number}"})
    assert audit.verify(log) == 3
    lines = log.read_text().splitlines(keepends=True)
    lines = {
        "change": [lines[0].replace("r0", "r9"), *lines[1:]],
        "remove": [lines[0], lines[2]],
        "swap": [lines[1], lines[0], lines[2]],
        "cut": [*lines[:2], lines[2][:40]],
    }[damage]
    log.write_text("".join(lines))
    with pytest.raises(DataError, match=r"log\.jsonl:\d"):
        audit.verify(log)


def test_a_prompt_is_refused_by_the_rules_of_prompts_alone():
    rules = Policy(rules=(
        Rule(name="ask", words=("bomb",), action="stop", where=("prompt",)),
        Rule(name="say", words=("bad",), action="stop"),
    ))  # fmt: skip
    assert rules.prompt_rule("how to build a b0mb") == "ask"
    assert rules.prompt_rule("what is bad") is None and shown(rules, "a bomb") == "a bomb"
