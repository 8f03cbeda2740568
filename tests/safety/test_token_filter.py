"""No blocked text in what is drawn, whatever tokens spell it, in every way to decode."""

import unicodedata
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sessions import session_on

import jaxgen
from jaxgen import tokens
from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.safety.folding import readings
from jaxgen.safety.policy import Policy, Rule, read_policy
from jaxgen.safety.token_filter import DEAD, pieces_of
from jaxgen.serve.engine import Engine
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt
from jaxgen.tokens.plain import Bytes

WORDS = ("the", "dog", "añb", "return a")
SIGNS = r"x?[0-9]{2}-|\bqu\b"
RULES = Policy(
    rules=(
        Rule(name="words", words=WORDS, whole=False),
        Rule(name="signs", regex=(SIGNS,), fold="none"),
    )
)


@cache
def tokenizer(kind, folder=None):
    if kind == "bytes":
        return Bytes()
    if kind == "unigram":
        settings = tokens.TokenizerSettings(kind="unigram", vocab_size=290)
        return tokens.train(
            settings, ["the quick brown dog, 日本語 return a thé ＤＯＧ 12-34\n"] * 4
        )
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    engine = tokenizers.Tokenizer(models.BPE())
    about = {"show_progress": False, "special_tokens": ["<s>"]}
    if kind == "bpe":
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **about)
    else:
        engine = tokenizers.Tokenizer(models.WordPiece(unk_token="<s>"))
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, **about)
    engine.train_from_iterator(["the quick brown dog. return a thé qu 12-34 x!"] * 4, trainer)
    engine.save(f"{folder}/tokenizer.json")
    return tokens.load(f"{folder}/tokenizer.json", eos="<s>")


def may_read(text, word):
    """Return whether a word may be read in a text, character by character: the slow twin."""
    target = "".join(one if (one := min(readings(c, "full"))) else "" for c in word)

    def goes_on(at, left):
        if not left:
            return True
        if at == len(text):
            return False
        character = text[at]
        if left[0] == " " and not character.isspace():
            return "" in readings(character, "full") and goes_on(at + 1, left)
        for one in readings(character, "full"):
            one = " " if one.isspace() else one
            if (one and left.startswith(one)) and goes_on(at + 1, left[len(one) :]):
                return True
            if not one and goes_on(at + 1, left):
                return True
        return left[0] == " " and character.isspace() and goes_on(at + 1, left)

    return any(goes_on(at, target) for at in range(len(text)))


def drawn(kind, folder, rows=16, length=64):
    """Return texts of draws that spell the words, and parts of characters, more often than not."""
    from jaxgen.decoding.when import When

    chosen, rules = tokenizer(kind, folder), RULES
    pieces, stop = pieces_of(chosen), np.asarray([[chosen.special.eos]])
    letters = {c for word in WORDS for c in word.encode()} | set(b"x0123456789-qu \xc3\xef\xbc")
    wanted = [bool(piece) and set(piece) <= letters for piece in pieces]
    logits = jnp.where(
        jnp.asarray(wanted), 3.0, jnp.where(jnp.arange(len(pieces)) == stop, -9, 0.0)
    )
    limits = np.full(rows, length, np.int32)
    part = rules.processor(chosen, [()] * rows, limits, np.repeat(stop, rows, 0))
    assert isinstance(part, When)
    sample, first = jaxgen.chain(part), jnp.zeros(rows, jnp.int32)
    scripts = jnp.asarray([script(chosen, spelled, length) for spelled in SPELLINGS])
    scripts = jnp.tile(scripts, (rows // len(SPELLINGS) + 1, 1))[:rows]

    def step(tokens, place):  # half of the rows are told what to spell, token by token
        asked = jax.nn.one_hot(scripts[:, place[0]], len(pieces)) * 30
        return logits + jnp.where(jnp.arange(rows)[:, None] % 2 == 0, asked, 0.0), place + 1

    begin, about = jnp.zeros(rows, jnp.int32), {"stop": stop[0], "prompt": first[:, None]}
    out, _ = jaxgen.decode(step, begin, first, jax.random.key(0), sample, length, **about)
    return chosen, np.asarray(out)


SPELLINGS = (
    *("a \uff44\uff4f\uff47", "", "th\u200bé ", "", "the DÖG ", "", "return\u3000 4 ", ""),
    *("u 12- 34-", "", "x qu", "", "x qu\u2026", ""),
)


def script(chosen, text, length):
    """Return the ids of a text again and again, with an end behind it."""
    ids = chosen.encode(text) + [chosen.special.eos] * text.endswith("qu")
    return ([*ids] * length or [0] * length)[:length]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram", "wordpiece"])
def test_no_blocked_text_is_drawn_whatever_tokens_spell_it(kind, tmp_path):
    import re

    chosen, rows = drawn(kind, tmp_path)
    texts = [chosen.decode([i for i in row.tolist() if i >= 0]) for row in rows]
    assert sum(map(len, texts)) > 500
    for text in texts:
        assert not any(may_read(text, word) for word in WORDS)
        assert not re.search(SIGNS, text)
    # The draws come near to it: without the end of a rule they are there.
    assert any(re.search("th|do", t) for t in texts) and any(
        re.search("[0-9]{2}", t) for t in texts
    )


CONFIG = jaxgen.ModelConfig(vocab_size=259, context=96, layers=1, d_model=16, heads=2)
WIDE = """
rules:
- {name: letters, words: [a, b, c, d, e, o], whole: false}
- {name: up, regex: ['[A-Z]{1,4}'], action: mask}
"""


@pytest.fixture(scope="module")
def session():
    return session_on(CONFIG, jaxgen.init(CONFIG, jax.random.key(0)), Bytes())


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "p.yaml").write_text(WIDE)
    return str(tmp_path / "p.yaml")


def test_every_way_to_decode_obeys(session, policy):
    ways = [{"beams": 2}, {"lookup": 2}]
    for way in ways:
        text = session.generate("a", policy=policy, max_new_tokens=12, **way)
        assert not any(may_read(text, letter) for letter in "abcdeo"), way
        assert not any(one.isascii() and one.isupper() for one in text)


def test_streamed_is_unstreamed_is_served(session, policy):
    import dataclasses

    served = dataclasses.replace(session, policy=policy)
    with pytest.raises(ConfigError, match=r"policy=other.yaml has no effect: this session has"):
        served.generate("ab", policy="other.yaml")
    prompts = [
        Prompt(t, Generation(max_new_tokens=24, temperature=1.0, seed=i))
        for i, t in enumerate(["ab", "xyz"])
    ]
    whole = [row[0] for row in served.run(prompts)]
    ended = {}
    with Engine(served, slots=2, chunk=3, context=64) as engine:
        for number, prompt in enumerate(prompts):
            engine.submit(prompt, lambda event, n=number: ended.update({n: event}))
        with pytest.raises(ConfigError, match="exclude each other"):
            engine.submit(prompts[0], print, detail=2)
        assert engine.drain(300) and engine.stats().other_compilations == 0
    for number, prompt in enumerate(prompts):
        assert "".join(served.stream(prompt.text, prompt.settings)) == whole[number].text
        assert ended[number].completion.text == whole[number].text
        assert whole[number].rules in ((), ("up",))


def test_where_nothing_is_left_to_draw_the_text_ends_with_a_reason(session, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("rules:\n- {name: two, regex: ['[\\s\\S]{2}'], fold: none}\n")
    # Tokens that spell nothing would be left: the end, and others.
    how = {"policy": str(path), "max_new_tokens": 9, "min_new_tokens": 9}
    how["suppress_ids"] = (256, 258)
    (one,) = session.run([Prompt(session.ids("a"), Generation(temperature=1.0, **how))])[0]
    assert one.reason == Reason.FILTER and len(one.text) == 1
    (beam,) = session.run([Prompt("a", Generation(beams=2, **how))])[0]
    assert beam.reason == Reason.FILTER and beam.text == ""


def test_allowed_draws_are_those_without_a_policy(session, tmp_path):
    (tmp_path / "p.yaml").write_text("rules:\n- {name: none, words: [neverdrawn]}\n")
    settings = {"max_new_tokens": 12, "temperature": 1.0}
    several = [settings, {**settings, "policy": str(tmp_path / "p.yaml")}]
    plain, ruled = (session.run([Prompt("ab", Generation(**one))])[0][0] for one in several)
    assert plain.tokens == ruled.tokens and plain.text == ruled.text


def test_a_prompt_is_refused_and_a_rule_that_leaves_no_token(session, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("rules:\n- {name: ask, words: [bomb], action: stop, where: [prompt]}\n")
    with pytest.raises(ConfigError, match="refused by the policy's rule 'ask'"):
        session.generate("a B0MB", policy=str(path))
    path.write_text("rules:\n- {name: all, regex: ['[\\x00-\\x7f]', '[\\x80-\\uffff]']}\n")
    with pytest.raises(ConfigError, match="leave no token to begin a text with"):
        read_policy(path).blocked(tokenizer("wordpiece", tmp_path))


@pytest.mark.parametrize(("before", "ends"), [("这", True), ("は", True), ("é", False), ("", True)])
def test_a_word_is_never_drawn_beside_a_script_without_blanks(before, ends):
    (blocked,) = Policy(rules=(Rule(name="word", words=("bad",)),)).blocked(Bytes())
    for after in (" ", "吗", "x"):
        state = blocked.start(f"{before}ba")
        for character in ("d", after):
            state = blocked.moves[state, blocked.letters.of[ord(character)]]
        assert (state == DEAD) == (ends and after != "x")


def test_a_korean_word_is_never_drawn_in_syllables_or_in_letters():
    (blocked,) = Policy(rules=(Rule(name="word", words=("밥",), whole=False),)).blocked(Bytes())
    for text, dead in (("밥", True), ("법", False), ("바", False)):
        for form in ("NFC", "NFD"):
            state = blocked.start("")
            for character in unicodedata.normalize(form, text):
                state = blocked.moves[state, blocked.letters.of[ord(character)]]
            assert (state == DEAD) == dead, (text, form)


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_classifier_refuses_prompts_and_ends_texts(session, tmp_path, monkeypatch, when):
    from jaxgen.text import moderation
    from jaxgen.text.tasks import scoring

    about = {"topology": "encoder", "head": "classes", "classes": 2}
    config = jaxgen.ModelConfig(vocab_size=259, context=96, layers=1, d_model=16, heads=2, **about)
    params = jaxgen.init(config, jax.random.key(1))
    judge = session_on(config, params, Bytes(), labels=("good", "bad")).model
    monkeypatch.setattr(moderation, "open_model", lambda folder: judge)
    path, how = tmp_path / "p.yaml", {"max_new_tokens": 12, "temperature": 1.0}

    def classify(label, threshold):
        moderation._opened.cache_clear()
        about = f"label: {label}, threshold: {threshold}, when: [{when}], window: 8"
        path.write_text(f"classifiers:\n- {{name: judge, model: m, {about}}}\n")
        return Generation(policy=str(path), **how)

    plain = session.generate("ab", **how)
    read = {"before": "ab", "during": plain[:4], "after": plain}[when]
    likely = dict(scoring.classify(judge, [read])[0])["bad"]
    settings = classify("bad", likely * 0.99)
    if when == "before":
        with pytest.raises(ConfigError, match="refused by the policy's rule 'judge'"):
            session.generate("ab", settings)
    else:
        (one,) = session.run([Prompt("ab", settings)])[0]
        assert (one.text, one.reason, one.rules) == ("", Reason.FILTER, ("judge",))
        assert "".join(session.stream("ab", settings)) == ""
    assert session.generate("ab", classify("bad", 1.0)) == plain
    with pytest.raises(ConfigError, match="m has no label 'ugly'; it has good, bad"):
        session.generate("ab", classify("ugly", 0.5))
