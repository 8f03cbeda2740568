"""Prompts and texts beyond the context: refused, cut at the beginning, or slid on."""

import warnings

import jax
import pytest
from sessions import session_on

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.nn.unroll import unroll
from jaxgen.text.batch_decoding import CHUNK
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt
from jaxgen.tokens.plain import Bytes

CONTEXT, HALF = 40, 20
SIZES = {"vocab_size": 259, "context": CONTEXT, "layers": 2, "d_model": 16, "heads": 2}
WIRINGS = {
    "learned": {},
    "rope": {"positions": "rope"},
    "local": {"positions": "rope", "pattern": ("local", "global"), "window": 8},
    "sinusoid": {"positions": "sinusoid"},
    "unrolled": {"positions": "rope"},
}


def make(wiring="learned", **fields):
    config = jaxgen.ModelConfig(**SIZES, init_std=0.5, **WIRINGS[wiring], **fields)
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    if wiring == "unrolled":
        params = params | {"layers": unroll(params["layers"])}
    return session_on(config, params, Bytes(), **({"start": 256} if fields else {}))


@pytest.fixture(scope="module")
def session():
    return make()


def run(session, *prompts, detail=False, **settings):
    # Without the end token, so that texts are as long as they may be.
    about = Generation(**{"temperature": 1.0, "suppress_ids": (257,)} | settings)
    asked = [Prompt(prompt, about, number) for number, prompt in enumerate(prompts)]
    return [one for (one,) in session.run(asked, detail=detail)]


@pytest.mark.parametrize("how", ["cut", "slide"])
def test_within_the_context_nothing_changes(session, how):
    for size, length in ((1, None), (20, 5), (30, None), (CONTEXT - 2, 1), (15, CONTEXT - 16)):
        prompt = "x" * size
        plain = run(session, prompt, max_new_tokens=length)
        if how == "slide" and length is None:  # there is no room that limits it
            length = CONTEXT - 1 - size
        assert run(session, prompt, max_new_tokens=length, overflow=how) == plain


def slid(session, prompt, length):
    """Return the greedy text past the context, each piece from a prompt that is made by hand."""
    window, made = session.ids(prompt), []
    while len(made) < length:
        count = min(CHUNK, CONTEXT - HALF, length - len(made))
        if len(window) + count > CONTEXT:
            window = [*window[:1], *window[1:][1 - HALF :]]
        (piece,) = run(session, window, temperature=0.0, max_new_tokens=count)
        window, made = window + piece.tokens, made + piece.tokens
    return made


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_text_past_the_context_goes_on_from_its_last_half_read_as_a_prompt(wiring):
    session = make(wiring)
    found = run(session, "hello", temperature=0.0, max_new_tokens=70, overflow="slide")
    assert found[0].tokens == slid(session, "hello", 70)
    assert len(found[0].tokens) == 70


def test_a_text_past_the_context_depends_on_no_neighbour_and_keeps_its_settings(session):
    prompts = ["letters", "a much longer prompt", "x" * 39, "y" * 200]
    how = {"overflow": "slide", "max_new_tokens": 60, "frequency_penalty": 2.0}
    with pytest.warns(UserWarning, match=r"2 of 4 prompts were cut at the beginning"):
        together = run(session, *prompts, **how)
    for number, prompt in enumerate(prompts):
        about = Generation(**{"temperature": 1.0, "suppress_ids": (257,)} | how)
        with warnings.catch_warnings(action="ignore"):
            ((alone,),) = session.run([Prompt(prompt, about, number)])
        assert alone.tokens == together[number].tokens
        assert len(alone.tokens) == 60
    # The penalty counts the whole text, of which the cache holds the end alone.
    short = run(session, "letters", **how | {"frequency_penalty": None})
    assert short[0].tokens != together[0].tokens


def test_log_probabilities_past_the_context_are_those_of_what_was_read(session):
    how = {"overflow": "slide", "max_new_tokens": 50, "temperature": 0.0}
    (found,) = run(session, "hello", detail=True, **how)
    (plain,) = run(session, "hello", **how)
    assert found.tokens == plain.tokens and len(found.logprobs) == 50


@pytest.mark.parametrize(("length", "kept"), [(10, CONTEXT - 10), (None, CONTEXT // 2)])
def test_a_prompt_is_cut_at_its_beginning_and_keeps_the_id_that_opens_it(session, length, kept):
    prompt = "".join(map(chr, range(33, 120)))
    with pytest.warns(UserWarning, match=rf"cut at the beginning to fit.* \({88 - kept} tokens"):
        (found,) = run(session, prompt, overflow="cut", max_new_tokens=length)
    (same,) = run(session, prompt[1 - kept :], max_new_tokens=length)
    assert found == same and found.prompt_tokens == kept
    with pytest.warns(UserWarning, match="cut"):
        streamed = session.stream(
            prompt, temperature=1.0, suppress_ids=(257,), overflow="cut", max_new_tokens=length
        )
        assert "".join(streamed) == found.text


def test_the_source_of_an_encoder_is_cut_at_its_end():
    session = make(topology="encoder_decoder")
    with pytest.warns(UserWarning, match="1 of 1 prompts were cut at the end"):
        found = run(session, "abc" * 30, overflow="cut", max_new_tokens=5)
    assert found == run(session, ("abc" * 30)[: CONTEXT - 2], max_new_tokens=5)
    with pytest.raises(ConfigError, match="overflow=slide with topology=encoder_decoder"):
        run(session, "abc", overflow="slide")


def test_what_does_not_fit_names_the_remedy_and_what_can_not_slide_is_refused(session):
    with pytest.raises(ConfigError, match="shorten the prompt by 12, or cut it with overflow=cut"):
        run(session, "x" * 50)
    with pytest.raises(ConfigError, match="at most 37, or go on past it with overflow=slide"):
        run(session, "xx", max_new_tokens=50)
    with pytest.raises(ConfigError, match="40 new tokens leave no room for a prompt"):
        run(session, "xx", max_new_tokens=40, overflow="cut")
    for other in ({"beams": 2}, {"contrastive": 0.5, "top_k": 3}, {"lookup": 2}, {"guidance": 2.0}):
        with pytest.raises(ConfigError, match=r"overflow=slide and .* exclude each other"):
            Generation(overflow="slide", **other)


def test_names_that_are_no_settings_and_texts_that_are_no_lists_are_refused(session):
    with pytest.raises(ConfigError, match=r"temprature= is no setting.*'temperature'"):
        session.generate("a", temprature=0.5)
    for call in (session.complete, session.embed, session.score, session.classify):
        with pytest.raises(ConfigError, match=r"='abc' is one text|classify needs head"):
            call("abc")


def test_settings_and_single_ones_go_together(session):
    about = Generation(temperature=0.0, max_new_tokens=9)
    texts = {
        session.generate("ab", about),
        session.generate("ab", temperature=0.0, max_new_tokens=9),
        session.generate("ab", Generation(temperature=0.0), max_new_tokens=9),
        "".join(session.stream("ab", about)),
        session.complete(["ab"], max_new_tokens=9, temperature=0.0)[0],
    }
    assert len(texts) == 1
