"""Each objective is a pure function of tokens and keys, and hides what its paper says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.objectives import denoise, spans
from jaxgen.data.objectives.masked import Masking, hide
from jaxgen.data.objectives.text import Prefix
from jaxgen.data.random import stream_keys, uniform

KEYS = stream_keys(5, np.arange(64))
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(10, 1000, (64, 200))
OPEN = np.ones_like(TOKENS, bool)


def test_streams_are_uniform_and_apart():
    found = uniform(KEYS, 5000, stream=0)
    counts = np.histogram(found, 100, (0, 1))[0]
    assert (((counts - found.size / 100) ** 2) / (found.size / 100)).sum() < 149  # p > 0.001
    assert abs(np.corrcoef(found[0], uniform(KEYS, 5000, stream=1)[0])[0, 1]) < 0.06
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.06
    assert (uniform(KEYS[3:5], 7, stream=2) == uniform(KEYS, 7, stream=2)[3:5]).all()


def test_masked_hides_15_percent_as_80_10_10():
    read, weights = hide(TOKENS, OPEN, OPEN, KEYS, Masking(0.15, "tokens", 1, 1000))
    chosen = weights > 0
    assert (chosen.sum(axis=1) == 30).all() and (read[~chosen] == TOKENS[~chosen]).all()
    masked, kept = read[chosen] == 1, read[chosen] == TOKENS[chosen]
    total = chosen.sum()
    deviation = 4 * np.sqrt(0.16 * total)
    assert abs(masked.sum() - 0.8 * total) < deviation
    assert abs(kept.sum() - 0.1 * total) < deviation
    assert (~masked & ~kept).sum() > 0.05 * total


def test_masked_leaves_special_ids_and_always_chooses_one():
    closed = OPEN.copy()
    closed[:, 3:] = False
    _, weights = hide(TOKENS, closed, OPEN, KEYS, Masking(0.15, "tokens", 1, 1000))
    assert (weights.sum(axis=1) == 1).all() and not weights[:, 3:].any()


def test_whole_words_are_hidden_whole_with_one_fate():
    starts = RNG.random(TOKENS.shape) < 0.4
    read, weights = hide(TOKENS, OPEN, starts, KEYS, Masking(0.15, "words", 1, 1000))
    for row in range(len(TOKENS)):
        begins = np.flatnonzero(starts[row] | (np.arange(200) == 0))
        for begin, end in zip(begins, [*begins[1:], 200], strict=True):
            inside = weights[row, begin:end]
            assert inside.all() or not inside.any()
            hidden = read[row, begin:end] == 1
            assert hidden.all() or not hidden.any()
    longest = max(np.diff(np.flatnonzero(row)).max() for row in starts)
    assert (weights.sum(axis=1) >= 30).all() and (weights.sum(axis=1) < 30 + longest).all()


def published_lengths(inputs_length, noise_density, mean_noise_span_length):
    """`random_spans_helper` as published in google-research/text-to-text-transfer-transformer."""

    def come_to(tokens_length):
        num_noise_tokens = round(tokens_length * noise_density)
        num_nonnoise_tokens = tokens_length - num_noise_tokens
        num_noise_spans = round(num_noise_tokens / mean_noise_span_length)
        return num_nonnoise_tokens + num_noise_spans + 1, num_noise_tokens + num_noise_spans + 1

    tokens_length = inputs_length
    while come_to(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    inputs_length, targets_length = come_to(tokens_length)
    if noise_density == 0.5 and targets_length > inputs_length:
        tokens_length -= 1
        targets_length -= 1
    return tokens_length, targets_length


def test_span_lengths_are_those_of_t5():
    assert spans.lengths(512, 0.15, 3.0) == (568, 114)
    for source in range(24, 600, 7):  # its code miscounts shorter ones
        for rate, span in ((0.15, 3.0), (0.25, 8.0)):
            assert spans.lengths(source, rate, span) == published_lengths(source, rate, span)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.15, 0.5, 0.8])
@pytest.mark.parametrize("span", [1.0, 2.0, 3.0, 8.0])
def test_rows_of_spans_are_as_long_as_their_lengths_say(rate, span):
    for source in [*range(3, 80), 512]:
        tokens, target = spans.lengths(source, rate, span)
        noise = spans.noise_mask(np.arange(1, dtype=np.uint64), tokens, rate, span)
        ids, sentinels = np.zeros((1, tokens), np.int64), np.arange(9, 9 + tokens)
        made = [side.shape[1] for side in spans.corrupt(ids, noise, sentinels, 1)]
        assert made[0] <= source and made[1] == target
        if rate != 0.5:  # where T5's own exception may shorten both
            longer = spans.noise_mask(np.arange(1, dtype=np.uint64), tokens + 1, rate, span)
            ids = np.zeros((1, tokens + 1), np.int64)
            assert spans.corrupt(ids, longer, np.arange(9, 10 + tokens), 1)[0].shape[1] > source


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(4, 300), rate=st.floats(0.05, 0.6), span=st.floats(1, 8),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_source_and_target_of_spans_hold_the_text_between_them(length, rate, span, seed):
    keys, tokens = stream_keys(seed, np.arange(4)), np.tile(np.arange(100, 100 + length), (4, 1))
    noise = spans.noise_mask(keys, length, rate, span)
    assert (noise.sum(axis=1) == min(max(round(length * rate), 1), length - 1)).all()
    assert not noise[:, 0].any() and noise[:, -1].all()
    sentinels = 2000 - np.arange(length)
    source, target = spans.corrupt(tokens, noise, sentinels, 1)
    for row in range(4):
        parts, said = {}, target[row].tolist()
        assert said.pop() == 1 and source[row, -1] == 1
        for token in said:
            if token >= 1000:
                name = parts.setdefault(token, [])
            else:
                name.append(token)
        whole = [t for s in source[row, :-1].tolist() for t in parts.get(s, [s])]
        assert whole == tokens[row].tolist()
        assert list(parts) == [2000 - n for n in range(len(parts))]


def test_sentences_change_places_and_stay_whole():
    tokens = np.tile(np.arange(12), (64, 1))
    ends = np.isin(tokens, (3, 4, 9))
    found = denoise.permute(tokens, ends, KEYS)
    sentences = {(0, 1, 2, 3), (4,), (5, 6, 7, 8, 9), (10, 11)}
    seen = set()
    for row in found.tolist():
        rest, order = row, []
        while rest:
            part = next(s for s in sentences if tuple(rest[: len(s)]) == s)
            order.append(part)
            rest = rest[len(part) :]
        assert set(order) == sentences
        seen.add(tuple(order))
    assert len(seen) > 12


def test_infilling_masks_30_percent_in_spans_of_poisson_length():
    source, sizes = denoise.infill(TOKENS, KEYS, rate=0.3, span=3.0, mask=1)
    gone = []
    for row, size, tokens in zip(source, sizes, TOKENS, strict=True):
        assert (row[size:] == 0).all()
        kept = row[:size][row[:size] != 1].tolist()
        rest = iter(tokens.tolist())
        assert all(token in rest for token in kept)  # in order
        gone.append(len(tokens) - len(kept))
    assert 0.2 < np.mean(gone) / 200 < 0.36  # overlaps cost some, the last span adds some
    assert 15 < (source == 1).sum(axis=1).mean() < 25


def test_prefix_gives_the_first_part_and_predicts_the_rest():
    batch = Prefix("encoder_decoder", 7)(TOKENS, KEYS)
    cuts = batch["source_segments"].sum(axis=1)
    assert cuts.min() >= 1 and cuts.max() < 200 and len(set(cuts)) > 30
    for row, cut in enumerate(cuts):
        assert (batch["source"][row, :cut] == TOKENS[row, :cut]).all()
        inside = batch["weights"][row] > 0
        assert (batch["targets"][row][inside] == TOKENS[row, cut:]).all()
        assert batch["tokens"][row, 0] == 7
    alone = Prefix("decoder", 7)(TOKENS, KEYS)
    # The prefix ends with the token whose successor is the first to be predicted.
    first = (alone["weights"] > 0).argmax(axis=1)
    assert (alone["prefix"].sum(axis=1) == first + 1).all()
    assert (np.diff(alone["prefix"], axis=1) <= 0).all()
    for row, cut in enumerate(cuts):
        assert (alone["targets"][row][alone["weights"][row] > 0] == TOKENS[row, cut:]).all()
