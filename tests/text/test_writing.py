"""No part of a stop string is ever shown, whatever pieces the text comes in."""

import itertools

import numpy as np
import pytest

from jaxgen import tokens
from jaxgen.decoding.stop import FOUND, Reason, stop_strings
from jaxgen.text.text_stream import StopStringFilter, TextStream

CORPUS = ["the cat sat on the mat, \u00e9t\u00e9 \U0001f600 stop here\nUser: and there "] * 40
KINDS = {"bytes": {}, "chars": {}, "bpe": {"vocab_size": 300}, "unigram": {"vocab_size": 280}}


def test_clipped_pieces_are_the_text_before_the_first_string():
    for text in map("".join, itertools.product("ab", repeat=7)):
        for strings in (["aab"], ["ab", "ba"], ["abab", "b"], ["bb"], []):
            for cut in (1, 2, 3, 7):
                clip = StopStringFilter(strings)
                shown = [clip.push(text[i : i + cut]) for i in range(0, 7, cut)]
                ends = [n for n in range(8) if any(text[:n].endswith(one) for one in strings)]
                wanted = text
                if ends:
                    last = max((one for one in strings if text[: ends[0]].endswith(one)), key=len)
                    wanted = text[: ends[0] - len(last)]
                assert "".join(shown) + clip.flush() == wanted
                assert clip.found == bool(ends)


@pytest.mark.parametrize("kind", KINDS)
def test_no_stop_string_appears_with_any_tokenizer(kind):
    settings = tokens.TokenizerSettings(kind=kind, **KINDS[kind])
    tokenizer = tokens.train(settings, iter(CORPUS))
    random = np.random.default_rng(1)
    prompt, ended = tokenizer.encode("the"), 0
    for _ in range(60):
        begin = random.integers(0, 40, 3)
        strings = [CORPUS[0][at : at + random.integers(1, 6)] for at in begin]
        table = stop_strings(strings, tokenizer.surface.pieces)
        # Texts of the corpus, with a rubbish token here and there, so that strings do come up.
        ids = tokenizer.encode(CORPUS[0][random.integers(0, 30) :])
        for place in random.integers(0, len(ids), 3):
            ids[place] = int(random.integers(0, tokenizer.vocab_size))
        writing = TextStream(tokenizer, prompt, strings, len(ids))
        pieces = [writing.push([token]) for token in ids]
        text = "".join(pieces)
        assert not any(one in text for one in strings)
        state, made = int(table.state[0]), 0
        while made < len(ids) and state != FOUND and tokenizer.special.eos not in ids[:made]:
            state, made = int(table.table[state, table.classes[ids[made]]]), made + 1
        assert writing.num_generated == made
        assert (writing.reason == Reason.STRING) == (state == FOUND)
        whole = tokenizer.decode([*prompt, *ids[:made]])[3:]
        assert whole.startswith(text)
        if state == FOUND:
            assert any(whole[len(text) :].startswith(one) for one in strings)
            ended += 1
        else:
            assert whole == text
    assert ended > 20
