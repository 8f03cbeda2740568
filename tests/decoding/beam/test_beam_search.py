"""Beam search against exhaustive search, exact draws, and itself in other company."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import errors
from jaxgen.decoding.chain import NOT_FINITE, greedy
from jaxgen.decoding.stop import Reason
from jaxgen.text import strategies

V, LENGTH, STOP = 5, 5, 1
TABLE = jax.random.normal(jax.random.key(4), (V, V, V)) * 1.5
FIRST = jnp.array([0, 2, 3])


def trigram(tokens, before):
    """Logits depend on the last two tokens; the cache is the one before."""
    return TABLE[before, tokens], tokens


@partial(jax.jit, static_argnames=("num_return",))
def search(how, first=FIRST, sample=None, key=None, limit=None, words=None, *, num_return=1):
    sample = jaxgen.chain() if sample is None else sample
    given = {"num_return": num_return, "stop": jnp.array([STOP]), "limit": limit, "words": words}
    cache = jnp.zeros_like(first)
    return jaxgen.beam_search(trigram, cache, first, key, sample, LENGTH, how, **given)


def every_text(first, penalty):
    """All texts that end, or are LENGTH long, with their scores; the best first."""
    logprobs = np.asarray(jax.nn.log_softmax(TABLE, axis=-1), np.float64)
    found = []
    for ids in itertools.product(range(V), repeat=LENGTH):
        text = ids[: ids.index(STOP) + 1] if STOP in ids else ids
        if text != ids and ids[len(text) :] != (0,) * (LENGTH - len(text)):
            continue
        pairs = zip((0, first, *text), (first, *text), text, strict=False)
        total = sum(logprobs[two] for two in pairs)
        found.append((total / len(text) ** penalty, text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_that_hold_everything_find_the_best_of_all_texts(penalty):
    found = search(jaxgen.beams(V**4, length_penalty=penalty, early_stopping="never"), num_return=4)
    for row, first in enumerate(FIRST.tolist()):
        wanted = every_text(first, penalty)[:4]
        np.testing.assert_allclose(found.scores[row], [s for s, _ in wanted], rtol=1e-5)
        for place, (_, text) in enumerate(wanted):
            assert (
                tuple(found.tokens[row, place, : found.num_generated[row, place]].tolist()) == text
            )


def test_beams_that_hold_everything_find_the_best_text_with_the_word():
    words = jaxgen.must_appear([[[4], [3]], [2]])
    found = search(jaxgen.beams(V**4, early_stopping="never"), words=words, num_return=2)
    assert found.constraints_met.all()
    changed = 0
    for row, first in enumerate(FIRST.tolist()):
        texts = every_text(first, 1.0)
        wanted = [(score, text) for score, text in texts if 2 in text and {3, 4} & set(text)][:2]
        changed += wanted[0] != texts[0]
        np.testing.assert_allclose(found.scores[row], [score for score, _ in wanted], rtol=1e-5)
        for place, (_, text) in enumerate(wanted):
            assert (
                tuple(found.tokens[row, place, : found.num_generated[row, place]].tolist()) == text
            )
    assert changed


def test_each_request_has_its_own_words_and_other_words_run_the_same_program():
    lists = [[[2, 3]], [], [[[0], [4, 2]]]]
    together = search(jaxgen.beams(3), words=jaxgen.must_appear(lists, each=True), num_return=3)
    before = search._cache_size()
    for row, words in enumerate(lists):
        same = jaxgen.must_appear([words or [[0]]] * 3, each=True)
        alone = search(jaxgen.beams(3), words=same, num_return=3)
        free = search(jaxgen.beams(3), num_return=3) if not words else alone
        np.testing.assert_array_equal(together.tokens[row], free.tokens[row])
        np.testing.assert_allclose(together.scores[row], free.scores[row], rtol=1e-6)
        for text, count, met in zip(
            together.tokens[row].tolist(),
            together.num_generated[row],
            together.constraints_met[row],
            strict=True,
        ):
            held = str([[2, 3], [], [0], [4, 2]][row])[1:-1] in str(text[: int(count)])
            assert bool(met) == (held or (row == 2 and "4, 2" in str(text[: int(count)])))
    assert search._cache_size() - before <= 1  # the free search
    assert together.constraints_met.any(axis=1).all()


def test_words_of_the_prompt_count_only_if_asked():
    def found(over):
        words = jaxgen.must_appear([[2]], over=over)
        given = {"prompt": jnp.array([[2, 0]]), "stop": jnp.array([STOP]), "words": words}
        how, cache = jaxgen.beams(2), jnp.array([2])
        return jaxgen.beam_search(
            trigram, cache, FIRST[:1], None, jaxgen.chain(), LENGTH, how, **given
        )

    new, all_ = found("new"), found("all")
    assert (
        2 in new.tokens[0, 0].tolist() and new.constraints_met[0, 0] and all_.constraints_met[0, 0]
    )
    assert 2 not in all_.tokens[0, 0, : int(all_.num_generated[0, 0])].tolist()


def test_a_stop_string_ends_a_beam_as_a_stop_id_does():
    pieces = [b"a", b"bc", b"d", b"e", b"f"]
    ids = search(jaxgen.beams(3), num_return=3)
    given = {"num_return": 3, "cache": jnp.zeros_like(FIRST), "sample": jaxgen.chain()}

    @jax.jit
    def stopped(strings):
        return jaxgen.beam_search(
            trigram,
            first=FIRST,
            key=None,
            length=LENGTH,
            search=jaxgen.beams(3),
            strings=strings,
            **given,
        )

    found = stopped(jaxgen.stop_strings(["bc"], pieces))
    assert found.tokens.tolist() == ids.tokens.tolist()
    np.testing.assert_allclose(found.scores, ids.scores, rtol=1e-6)
    assert set(found.reason.ravel().tolist()) >= {Reason.STRING, Reason.LENGTH}
    two = stopped(jaxgen.stop_strings(["cd", "fb"], pieces))
    for text, count, reason in zip(
        two.tokens.reshape(-1, LENGTH).tolist(),
        two.num_generated.ravel(),
        two.reason.ravel(),
        strict=True,
    ):
        spelled = b"".join(pieces[token] for token in text[: int(count)])
        before = b"".join(pieces[token] for token in text[: int(count) - 1])
        assert (reason == Reason.STRING) == (b"cd" in spelled or b"fb" in spelled)
        assert b"cd" not in before and b"fb" not in before


def test_a_wider_beam_never_scores_worse_on_the_toy():
    for penalty in (0.0, 1.0):
        scores = []
        for count in (1, 5, V**4):
            how = jaxgen.beams(count, length_penalty=penalty, early_stopping="never")
            scores.append(search(how, num_return=min(count, 4)).scores[:, 0])
        assert (np.diff(np.asarray(scores), axis=0) >= -1e-5).all()
        best = [every_text(first, penalty)[0][0] for first in FIRST.tolist()]
        np.testing.assert_allclose(scores[-1], best, rtol=1e-5)


def test_one_beam_is_greedy():
    found = search(jaxgen.beams(1))
    wanted, _ = jaxgen.decode(
        trigram,
        jnp.zeros_like(FIRST),
        FIRST,
        jax.random.key(0),
        greedy(),
        LENGTH,
        stop=jnp.array([STOP]),
    )
    assert found.tokens[:, 0].tolist() == wanted.tolist()


def test_drawn_beams_follow_the_exact_distribution():
    """Of V=5 continuations 4 are drawn without replacement; the best of them is what is found."""
    draws = 20_000
    probs = np.asarray(jax.nn.softmax(TABLE[0, 0]), np.float64)
    wanted = np.zeros(V)
    for order in itertools.permutations(range(V), 4):
        left, chance = 1.0, 1.0
        for token in order:
            chance, left = chance * probs[token] / left, left - probs[token]
        wanted[max(order, key=lambda t: probs[t])] += chance
    how = jaxgen.beams(2, do_sample=True)
    first, limit = jnp.zeros(draws, jnp.int32), jnp.ones(draws, jnp.int32)
    found = search(how, first, None, jax.random.key(1), limit)
    counts = np.bincount(found.tokens[:, 0, 0], minlength=V)
    real = wanted > 0
    statistic = ((counts - draws * wanted)[real] ** 2 / (draws * wanted[real])).sum()
    assert counts[~real].sum() == 0 and statistic < 23.5  # chi2, 4 degrees: p = 1e-4


def test_requests_with_other_rules_and_limits_in_one_batch_are_as_alone():
    rules, penalties, limits = [True, False, "never"], [0.0, 1.0, 2.0], [5, 3, 4]
    mixed = jaxgen.beams(3, length_penalty=jnp.array(penalties), early_stopping=rules)
    together = search(mixed, limit=jnp.array(limits), num_return=3)
    for row, (rule, penalty, limit) in enumerate(zip(rules, penalties, limits, strict=True)):
        how = jaxgen.beams(3, length_penalty=jnp.array([penalty]), early_stopping=[rule])
        alone = search(how, FIRST[row : row + 1], limit=jnp.array([limit]), num_return=3)
        for name in ("tokens", "scores", "num_generated", "reason"):
            mine, other = getattr(together, name)[row], getattr(alone, name)[0]
            np.testing.assert_array_equal(mine, other, err_msg=name)
        assert (together.num_generated[row] <= limit).all()


ILL = [(np.nan, "everywhere"), (np.nan, "once"), (np.inf, "once"), (-np.inf, "everywhere")]


@pytest.mark.parametrize(("number", "where"), ILL)
def test_a_sick_request_says_so_and_its_neighbours_go_on(number, where):
    def step(tokens, rows):
        logits, before = trigram(tokens, rows[:, 0])
        sick = (rows[:, 1] == 1)[:, None]
        if where == "once":
            sick &= jnp.arange(V) == 3
        return jnp.where(sick, number, logits), jnp.stack([before, rows[:, 1]], 1)

    cache = jnp.array([[0, 0], [0, 1], [0, 0]])
    chain = jaxgen.chain(jaxgen.suppress([[9], [9], list(range(V))]))
    given = {"stop": jnp.array([STOP])}
    found = jaxgen.beam_search(step, cache, FIRST, None, chain, LENGTH, jaxgen.beams(2), **given)
    assert found.reason[1:, 0].tolist() == [Reason.NOT_FINITE, Reason.BANNED]
    assert (found.tokens[1:] == NOT_FINITE).all() and (found.num_generated[1:] == 0).all()
    assert found.tokens[0].tolist() == search(jaxgen.beams(2)).tokens[0].tolist()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"count": 0}, "count=0"),
        ({"count": 4, "groups": 3}, "beams=4 is not a multiple of groups=3"),
        ({"count": 4, "diversity": 1.0}, "diversity=1.0 has no effect with groups=1"),
        ({"count": 4, "groups": 2, "do_sample": True}, "groups=2 and do_sample=True exclude"),
        ({"count": 4, "early_stopping": "soon"}, "early_stopping='soon'"),
        ({"count": 4, "length_penalty": float("nan")}, "length_penalty=nan"),
    ],
)
def test_contradictions_are_refused_in_one_line(settings, text):
    with pytest.raises(errors.ConfigError, match=text):
        jaxgen.beams(**settings)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "names no word"),
        ([[]], "must be token ids"),
        ([[3, -1]], "must be token ids"),
        ([[[3], [3, 4]]], "one alternative begins another"),
    ],
)
def test_words_that_can_not_be_are_refused(words, text):
    with pytest.raises(errors.ConfigError, match=text):
        jaxgen.must_appear(words)


@pytest.mark.parametrize("how", [{"groups": 2}, {"do_sample": True}])
def test_words_want_plain_beams(how):
    words, how = jaxgen.must_appear([[2]]), jaxgen.beams(2, **how)
    with pytest.raises(errors.ConfigError, match="and words= exclude each other"):
        search(how, key=jax.random.key(0), words=words)


def test_a_transformer_s_beams_are_scored_as_by_a_full_forward_pass():
    config = jaxgen.ModelConfig(
        vocab_size=19, context=24, layers=2, d_model=16, heads=2, init_std=0.5, positions="rope",
        pattern=("local",), window=3,
    )  # fmt: skip
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    prompt, lengths = jnp.array([[3, 1, 4, 1], [9, 2, 0, 0]]), jnp.array([4, 2])
    run = jax.jit(
        jaxgen.generate_beams, static_argnames=("config", "length", "num_return", "layout")
    )
    given = {"length": 6, "num_return": 3, "lengths": lengths, "layout": "ring"}
    found = run(params, config, prompt, jaxgen.beams(4), **given)
    forward = jax.jit(jaxgen.apply, static_argnums=1)
    for row, length in enumerate(lengths.tolist()):
        start = jnp.broadcast_to(prompt[row, :length], (3, length))
        texts = jnp.concatenate([start, found.tokens[row]], axis=1)
        logits = forward(params, config, jnp.pad(texts, ((0, 0), (0, 4 - length)))).logits
        logits = logits[:, length - 1 : length + 5]
        logprobs = jnp.take_along_axis(
            jax.nn.log_softmax(logits), found.tokens[row][..., None], axis=-1
        )[..., 0]
        np.testing.assert_allclose(found.logprobs[row], logprobs, atol=1e-5)
        np.testing.assert_allclose(found.scores[row], logprobs.sum(-1) / 6, atol=1e-5)
    with pytest.raises(errors.ConfigError, match="beams=20 exceed vocab_size=19"):
        jaxgen.generate_beams(params, config, prompt, jaxgen.beams(20), length=6)


def test_beams_that_share_a_row_s_keys_make_the_texts_of_beams_that_copy_them(monkeypatch):
    config = jaxgen.ModelConfig(
        vocab_size=23, context=24, layers=2, d_model=16, heads=2, init_std=0.5, biases="none",
        topology="encoder_decoder", positions="relative", pattern=("local", "global"), window=3,
    )  # fmt: skip
    params = random_params(config)
    prompt, lengths = jnp.array([[3, 1, 4], [9, 0, 0]]), jnp.array([3, 1])
    source, real = jnp.array([[5, 6, 7, 8], [8, 3, 0, 0]]), jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])

    def run(params):
        memory = jaxgen.encode(params, config, source, segments=real)
        given = {"length": 7, "lengths": lengths, "memory": memory, "stop": jnp.array([13, 14])}
        return jaxgen.generate_beams(params, config, prompt, jaxgen.beams(3), num_return=3, **given)

    shared = jax.jit(run)(params)
    monkeypatch.setattr(strategies, "SPLIT", 2)
    copied = jax.jit(lambda params: run(params))(params)
    assert set(shared.reason.ravel().tolist()) == {Reason.STOP, Reason.LENGTH}
    for name in ("tokens", "num_generated", "reason"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(copied, name), err_msg=name)
    np.testing.assert_allclose(shared.scores, copied.scores, atol=1e-5)
