"""Every setting of a request does what the library's function of that name does, in any company."""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params
from sessions import session_on

import jaxgen
from jaxgen import errors, tokens
from jaxgen.decoding.stop import Reason
from jaxgen.text import programs
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt, number_prompts

CONFIG = jaxgen.ModelConfig(vocab_size=259, context=96, layers=3, d_model=16, heads=2, init_std=0.5)
SMALL = CONFIG.replace(layers=1)
PAIR = CONFIG.replace(topology="encoder_decoder", layers=1, encoder_layers=1, context=64)
TOKENIZER = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
EOS, LENGTH, PROMPT = TOKENIZER.special.eos, 12, "hello hello"
MIXED = [
    {"max_new_tokens": 5},
    {"temperature": 0.3},
    {"top_k": 2},
    {"top_p": 0.1},
    {"min_p": 0.5},
    {"typical": 0.1},
    {"epsilon": 0.05},
    {"eta": 0.9},
    {"top_n_sigma": 0.5},
    {"repetition_penalty": 5.0},
    {"presence_penalty": -9.0},
    {"frequency_penalty": -9.0},
    {"no_repeat_ngram": 1},
    {"source_penalty": 9.0},
    {"source_penalty": 9.0, "no_repeat_source": 1},
    {"bias": ("z=30",)},
    {"bias": ("z=30",), "bad_words": ("z", "q")},
    {"bias_ids": ("65=30", "66=29")},
    {"suppress_ids": tuple(range(128, 256))},
    {"suppress_first_ids": tuple(range(256))},
    {"bad_words_ids": tuple(map(str, range(0, 256, 2)))},
    {"force_first": (70,)},
    {"force_last": (71,)},
    {"decay_start": 0, "decay_factor": 3.0},
    {"stop_ids": tuple(range(0, 256, 3))},
    {"stop_ids": tuple(range(0, 256, 3)), "min_new_tokens": 6},
    {"stop_ids": tuple(range(0, 256, 3)), "min_length": 16},
    {"watermark": 3, "watermark_bias": 20.0},
    {"regex": "[ab]{3,5}"},
    {"choices": ("cat", "dog")},
    {"json_schema": json.dumps({"type": "integer"})},
    {"seed": 9},
]


generate = jax.jit(jaxgen.generate, static_argnames=("config", "length"))
search = jax.jit(jaxgen.generate_beams, static_argnames=("config", "length", "num_return"))


@partial(jax.jit, static_argnums=1)
def logprobs_of(params, config, ids, source=None):
    """Log-probabilities [T, V] of what follows each of the ids [T]."""
    memory = None if source is None else jaxgen.encode(params, config, source[None])
    logits = jaxgen.apply(params, config, ids[None], memory=memory).logits
    return jax.nn.log_softmax(logits[0])


@pytest.fixture(scope="module")
def session():
    return session_on(CONFIG, random_params(CONFIG), TOKENIZER)


def settings(**given):
    return Generation(**{"max_new_tokens": LENGTH, "temperature": 1.0} | given)


def test_each_setting_of_a_mixed_batch_changes_its_own_text(session):
    # One batch holds all of them, so the chain is one program; numbers are equal, so draws are.
    marked = {"watermark": 3, "watermark_bias": 0.0}
    rows = [settings(**marked)] * 2 + [settings(**marked | given) for given in MIXED]
    before = programs._more._cache_size()
    found = [one for (one,) in session.run([Prompt(PROMPT, row) for row in rows])]
    assert programs._more._cache_size() == before + 1
    assert found[0] == found[1]
    told = dict(zip(map(str, MIXED), found[2:], strict=True))
    for given in MIXED:  # a second setting is seen against the first alone
        first = dict(list(given.items())[:1])
        other = told[str(first)] if len(given) == 2 and str(first) in told else found[0]
        assert told[str(given)].tokens != other.tokens, given

    def of(*names):
        return [told[str(one)] for one in MIXED if tuple(one) == names]

    assert len(of("max_new_tokens")[0].tokens) == 5
    assert of("force_first")[0].tokens[0] == 70
    assert of("force_last")[0].tokens[-1] == 71
    assert of("stop_ids")[0].reason == Reason.STOP and len(of("stop_ids")[0].tokens) < 6
    assert len(of("stop_ids", "min_new_tokens")[0].tokens) > 6
    assert len(of("stop_ids", "min_length")[0].tokens) > 16 - len(PROMPT) - 1
    assert re.fullmatch("[ab]{3,5}", of("regex")[0].text)
    assert of("choices")[0].text in ("cat", "dog")
    assert isinstance(json.loads(of("json_schema")[0].text), int)
    assert set("helo") & set(of("source_penalty")[0].text)
    assert not set("helo") & set(of("source_penalty", "no_repeat_source")[0].text)
    assert set(of("bias")[0].text) == {"z"} and "z" not in of("bias", "bad_words")[0].text
    assert set(of("bias_ids")[0].text) <= {"A", "B"}
    assert max(of("suppress_ids")[0].tokens) < 128 or EOS in of("suppress_ids")[0].tokens
    assert len(set(of("no_repeat_ngram")[0].tokens)) == LENGTH

    # Other values of the same kinds, in another order, are the same program.
    again = [dataclasses.replace(row, seed=n) for n, row in enumerate(reversed(rows))]
    session.run([Prompt("other", row, n) for n, row in enumerate(again)])
    assert programs._more._cache_size() == before + 1


def test_settings_are_the_chain_that_transformers_order_makes_of_them(session):
    given = settings(
        repetition_penalty=1.3,
        no_repeat_ngram=3,
        min_new_tokens=4,
        seed=5,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        bias=("e=3", "ll=-2"),
    )
    number = 3
    (answer,) = session.run([Prompt(PROMPT, given, number)], detail=True)[0]
    ids = jnp.asarray([TOKENIZER.encode(PROMPT)])
    ids = ids if TOKENIZER.special.bos is None else jnp.insert(ids, 0, TOKENIZER.special.bos, 1)
    sample = jaxgen.chain(
        jaxgen.sequence_bias({(ord("e"),): 3.0, (ord("l"), ord("l")): -2.0}),
        jaxgen.repetition_penalty(1.3),
        jaxgen.no_repeat_ngram(3),
        jaxgen.min_new_tokens(4, EOS),
        jaxgen.temperature(0.7),
        jaxgen.top_k(40),
        jaxgen.top_p(0.9),
        jaxgen.min_p(0.01),
    )
    keys = jax.random.fold_in(jax.random.key(5), number)[None]
    stop = jnp.asarray([EOS])
    given = {"length": LENGTH, "sample": sample, "stop": stop}
    wanted = generate(session.params, CONFIG, ids, keys, **given)
    assert answer.tokens == wanted[0].tolist()[: len(answer.tokens)]
    whole = jnp.concatenate([ids[0], jnp.asarray(answer.tokens)])
    said = logprobs_of(session.params, CONFIG, whole)[ids.shape[1] - 1 : -1]
    np.testing.assert_allclose(
        answer.logprobs, said[np.arange(len(answer.tokens)), np.asarray(answer.tokens)], atol=1e-4
    )


def test_beams_are_those_of_the_library_with_counts_and_probabilities(session):
    given = Generation(
        beams=3, n_best=2, length_penalty=0.5, early_stopping=True, max_new_tokens=LENGTH
    )
    asked = [Prompt(PROMPT, dataclasses.replace(given, top_logprobs=2)), Prompt("x", given)]
    both = session.run(asked, detail=True)
    ids = jnp.asarray([session.ids(PROMPT)])
    how = jaxgen.beams(3, length_penalty=0.5, early_stopping=True)
    stop = jnp.asarray([EOS])
    found = search(session.params, CONFIG, ids, how, length=LENGTH, num_return=2, stop=stop)
    for place, answer in enumerate(both[0]):
        assert (
            answer.tokens == found.tokens[0, place].tolist()[: int(found.num_generated[0, place])]
        )
        np.testing.assert_allclose(answer.score, found.scores[0, place], rtol=1e-5)
        np.testing.assert_allclose(answer.logprobs, found.logprobs[0, place][: len(answer.tokens)],
                                   atol=1e-4)  # fmt: skip
        assert answer.prompt_tokens == ids.shape[1] and len(answer.top[0]) == 2
        assert max(one.logprob for one in answer.top[0]) >= answer.logprobs[0] - 1e-6
    before = programs.search_beams._cache_size()
    changed = dataclasses.replace(given, length_penalty=2.0, early_stopping=False, max_new_tokens=9)
    other = session.run([Prompt(PROMPT, changed), Prompt("y", given)], detail=True)
    assert programs.search_beams._cache_size() == before
    assert other[0][0].score != both[0][0].score


def test_beams_bring_in_their_words_and_end_before_a_stop_string(session):
    given = Generation(beams=4, max_new_tokens=LENGTH)
    rows = [{"force_words": ("no|yes", "q")}, {"stop": ("q",)}, {}]
    asked = [Prompt(PROMPT, dataclasses.replace(given, **row)) for row in rows]
    forced, stopped, free = (one for (one,) in session.run(asked))
    assert "q" in forced.text and ("no" in forced.text or "yes" in forced.text)
    assert "q" not in stopped.text
    assert "q" not in free.text and free.text != forced.text
    ends = dataclasses.replace(given, stop=(free.text[-2:],))
    (cut,) = session.run([Prompt(PROMPT, ends)])[0]
    assert free.text[-2:] not in cut.text


def test_speculation_with_a_draft_or_the_text_itself_is_greedy_decoding(session, tmp_path):
    greedy = Generation(temperature=0.0, max_new_tokens=LENGTH)
    (wanted,) = session.run([Prompt(PROMPT, greedy)])[0]
    small = random_params(SMALL)
    jaxgen.save(tmp_path / "small", SMALL, small, tokenizer=TOKENIZER)
    for given in ({"lookup": 3}, {"draft": str(tmp_path / "small"), "draft_tokens": 2}):
        (found,) = session.run([Prompt(PROMPT, dataclasses.replace(greedy, **given))])[0]
        assert found.tokens == wanted.tokens and found.text == wanted.text
        assert found.drafted is not None and found.drafted[0] > 0
    other = tokens.train(tokens.TokenizerSettings(kind="chars"), iter(["abc"]))
    tiny = SMALL.replace(vocab_size=other.vocab_size)
    jaxgen.save(tmp_path / "other", tiny, random_params(tiny), tokenizer=other)
    with pytest.raises(errors.ConfigError, match="another tokenizer"):
        session.run([Prompt(PROMPT, Generation(draft=str(tmp_path / "other")))])


def test_dola_and_guidance_are_what_their_full_forward_passes_give(session):
    params, greedy = session.params, Generation(temperature=0.0, max_new_tokens=6)
    asked = [Prompt(PROMPT, dataclasses.replace(greedy, dola="low"))]
    asked += [
        Prompt(PROMPT, dataclasses.replace(greedy, guidance=1.5, negative_prompt=negative))
        for negative in ("no", None)
    ]
    dola, away, alone = (one.tokens for (one,) in session.run(asked))
    prompt = session.ids(PROMPT)

    @jax.jit
    def last(ids, length):
        out = jaxgen.apply(params, CONFIG, ids[None])
        state = jaxgen.apply(params, CONFIG, ids[None], taps=("layers/out",)).taps["layers/out"]
        early = state[1, 0, length - 1] @ params["embed"]["tokens"].T
        return out.logits[0, length - 1], early

    def logits(ids):
        return last(jnp.zeros(64, jnp.int32).at[: len(ids)].set(jnp.asarray(ids)), len(ids))

    for place in range(6):
        final, early = logits(prompt + dola[:place])
        contrast = jax.nn.log_softmax(final) - jax.nn.log_softmax(early)
        likely = jax.nn.softmax(final) >= 0.1 * jax.nn.softmax(final).max()
        assert int(jnp.argmax(jnp.where(likely, contrast, -jnp.inf))) == dola[place]
        for found, other in ((away, session.ids("no")), (alone, prompt[-1:])):
            with_it = jax.nn.log_softmax(logits(prompt + found[:place])[0])
            without = jax.nn.log_softmax(logits(other + found[:place])[0])
            assert int(jnp.argmax(without + 1.5 * (with_it - without))) == found[place]


def test_contrastive_search_penalises_what_repeats(session):
    free = Generation(contrastive=0.0, top_k=4, max_new_tokens=LENGTH)
    greedy = Generation(temperature=0.0, max_new_tokens=LENGTH)
    asked = [Prompt(PROMPT, free), Prompt(PROMPT, dataclasses.replace(free, contrastive=0.9))]
    (same,), (other,) = session.run(asked, detail=True)
    assert same.tokens == session.run([Prompt(PROMPT, greedy)])[0][0].tokens != other.tokens
    assert len(other.logprobs) == len(other.tokens)


def test_the_likeliest_of_several_draws_are_kept_in_order(session):
    every = session.run([Prompt(PROMPT, settings(samples=4))], detail=True)[0]
    kept = session.run([Prompt(PROMPT, settings(best_of=4, samples=2))])[0]
    means = sorted((sum(one.logprobs) / len(one.tokens) for one in every), reverse=True)
    np.testing.assert_allclose([one.score for one in kept], means[:2], rtol=1e-5)


def test_an_encoder_decoder_writes_a_text_of_its_own_beside_the_source():
    session = session_on(PAIR, random_params(PAIR), TOKENIZER, start=3)
    greedy = Generation(temperature=0.0, max_new_tokens=8)
    asked = [Prompt("a source", greedy), Prompt("another, longer source", greedy)]
    found = [one for (one,) in session.run(asked, detail=True)]
    for (text, *_), answer in zip(asked, found, strict=True):
        source = jnp.asarray([session.ids(text)])
        assert source[0, -1] == EOS and answer.prompt_tokens == source.shape[1]
        ids = jnp.asarray([3, *answer.tokens])
        said = logprobs_of(session.params, PAIR, ids[:-1], source[0])
        assert jnp.argmax(said, -1).tolist() == answer.tokens
        np.testing.assert_allclose(answer.logprobs, said.max(-1), atol=1e-4)
    with pytest.raises(errors.ConfigError, match=r"guidance=2\.0 needs negative_prompt"):
        session.run([Prompt("a", Generation(guidance=2.0))])
    with pytest.raises(errors.ConfigError, match="at most 63"):
        session.run([Prompt("a", Generation(max_new_tokens=64))])


REFUSED = [
    ({"stop_ids": (999,)}, "stop_ids=999 is outside the vocabulary of 259"),
    ({"suppress_ids": (259,)}, "suppress_ids=259"),
    ({"force_first": (300,)}, "force_first=300"),
    ({"bias": ("a",)}, "bias='a' must be TEXT=NUMBER"),
    ({"bias": ("a=x",)}, "bias='a=x'"),
    ({"bias_ids": ("a=1",)}, "bias_ids='a=1' must be ID=NUMBER"),
    ({"bias_ids": ("259=1",)}, "bias_ids=259 is outside the vocabulary of 259"),
    ({"json_schema": '{"type": "integer", "minimum": 3}'}, "minimum=3 can't be held to"),
    ({"regex": "(?=a)"}, "regex '(?=a)' can't be compiled"),
    ({"regex": "[0-9]{30}"}, "regex=[0-9]{30} needs 31 tokens at least, but max_new_tokens=12"),
    ({"json_schema": "{"}, "json_schema='{' is no JSON"),
    ({"json_schema": "@none.json"}, "json_schema=@none.json"),
    ({"min_new_tokens": 50, "max_new_tokens": None}, None),
    ({"suppress_ids": tuple(range(259))}, "every token is banned at new token 1"),
    ({"draft": "nowhere"}, "nowhere"),
    ({"top_logprobs": 300}, "top_logprobs=300"),
    ({"temperature": None, "beams": 300}, "beams=300"),
    ({"max_new_tokens": 96}, "at most 84"),
]


@pytest.mark.parametrize(("given", "part"), REFUSED)
def test_what_the_model_can_not_do_is_refused_in_one_line(session, given, part):
    if part is None:  # the context leaves fewer than the least
        prompt, part = "a" * 60, "min_new_tokens=50 is more than the"
    else:
        prompt = PROMPT
    with pytest.raises(errors.UserError, match=re.escape(part)) as caught:
        session.run([Prompt(prompt, settings(**given))], detail="top_logprobs" in given)
    assert "\n" not in str(caught.value)


def test_requests_of_different_strategies_keep_their_order(session):
    greedy = Generation(temperature=0.0, max_new_tokens=LENGTH)
    asked = [Prompt(PROMPT, greedy), Prompt(PROMPT, Generation(beams=1, max_new_tokens=LENGTH))]
    asked.append(Prompt("x", greedy))
    found = [one.tokens for (one,) in session.run(asked)]
    assert found[0] == found[1] != found[2]
    assert number_prompts(["a", "b"], settings(samples=3))[1].number == 3


def test_a_prompt_of_a_bucket_wider_than_the_context_is_no_longer_than_it_is():
    # Wavelengths that depend on the length of the row would show what only fills it up.
    config = jaxgen.ModelConfig(
        vocab_size=259, context=40, layers=2, d_model=16, heads=2, init_std=0.4, positions="rope",
        rope_theta=30.0,
    )  # fmt: skip
    scaling = jaxgen.config.RopeScaling(kind="dynamic", factor=8.0, original_context=40)
    params, asked = random_params(config), Prompt("abcdefg" * 5, Generation(temperature=0.0))
    found = [
        session_on(one, params, TOKENIZER).run([asked], detail=True)[0][0].logprobs
        for one in (config, config.replace(rope_scaling=scaling))
    ]
    np.testing.assert_allclose(*found, atol=1e-5)
