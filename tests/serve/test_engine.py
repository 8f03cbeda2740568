"""Requests that come and go in any order give the texts of `Session.run`, each as if alone."""

import random
import threading
import time
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_params import random_params
from sessions import session_on

import jaxgen
from jaxgen import errors
from jaxgen.decoding.stop import Reason
from jaxgen.serve import engine as engines
from jaxgen.serve import rounds, slots
from jaxgen.serve.engine import Draining, Engine, QueueFull
from jaxgen.serve.tickets import Delta, Failed, Finished, Started
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import Generation
from jaxgen.tokens.plain import Bytes

CONFIG = jaxgen.ModelConfig(
    vocab_size=259, context=64, layers=1, d_model=16, heads=2, positions="rope", output="untied"
)
DAMAGED = "~"  # a prompt with it has logits that are not finite
SIZES = {"slots": 3, "chunk": 4, "piece": 8, "prefix_tokens": 128}
SYSTEM = "You are a helpful parrot."
SHAPED = {"top_k": 5, "top_p": 0.7, "min_p": 0.1, "typical": 0.8, "epsilon": 0.001, "eta": 0.002}
SHAPED |= {"top_n_sigma": 2.0, "temperature": 1.7}
SET = {
    "repetition_penalty": 1.4, "presence_penalty": 0.6, "frequency_penalty": -0.3,
    "no_repeat_ngram": 2, "min_new_tokens": 3, "min_length": 20, "bias": ("a=3", "the=2.5"),
    "bad_words": ("e", "no"), "bad_words_ids": ("65,66",), "stop": ("a", "qu"), "stop_ids": (100,),
    "suppress_ids": (97, 98), "force_last": (33,), "suppress_first_ids": (104, 105),
}  # fmt: skip
STRUCTURES = {"regex": "[a-f]{2,6}[0-9]", "choices": ("yes", "no", "maybe")}


def is_answer(events, wanted):
    """Whether events tell a completion, and the pieces are its text."""
    deltas, last = [one for one in events if isinstance(one, Delta)], events[-1]
    assert isinstance(events[0], Started) and isinstance(last, Finished), events
    answer = last.completion
    assert (answer.text, answer.reason) == (wanted.text, wanted.reason)
    assert answer.tokens == wanted.tokens and answer.prompt_tokens == wanted.prompt_tokens
    assert "".join(one.text for one in deltas) == answer.text
    assert [token for one in deltas for token in one.tokens] == answer.tokens
    for ours, theirs in zip(answer.logprobs, wanted.logprobs, strict=len(answer.logprobs) > 0):
        assert ours == pytest.approx(theirs, abs=1e-4)
    for ours, theirs in zip(answer.top, wanted.top, strict=len(answer.top) > 0):
        assert [one.id for one in ours] == [one.id for one in theirs[: len(ours)]]
    assert [p for one in deltas for p in one.logprobs] == answer.logprobs
    return True


@pytest.fixture(scope="module")
def session():
    params = random_params(CONFIG)
    (row,) = Bytes().encode(DAMAGED)
    table = params["embed"]["tokens"].at[row].set(np.nan)
    return session_on(CONFIG, params | {"embed": params["embed"] | {"tokens": table}}, Bytes())


@pytest.fixture(scope="module")
def engine(session):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "SMALLEST", 32)
        patch.setattr(slots, "BLOCK", 8)
        said = []
        with Engine(session, **SIZES, queue=200) as one:
            one.warm_up(said.append)
            assert any("chunks of 3 rows, 64" in line for line in said)
            yield one


class Ear:
    """A listener that keeps what it hears, by the index of the text."""

    def __init__(self):
        self.events, self.news = {}, threading.Event()

    def __call__(self, event):
        self.events.setdefault(event.index, []).append(event)
        self.news.set()

    def ended(self, texts=1):
        """Wait until all texts have ended, and return the events of each."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            rows = [self.events.get(i, [None]) for i in range(texts)]
            if all(isinstance(row[-1], Finished | Failed) for row in rows):
                return rows
            time.sleep(0.002)
        raise AssertionError(self.events)


def settled(engine):
    """Return the stats once nothing is left to do."""
    end = time.monotonic() + 60
    while (found := engine.stats()).used or found.queued:
        assert time.monotonic() < end, found
        time.sleep(0.002)
    return found


def ended(stats):
    """Return how many texts have ended, in each way."""
    return stats.finished, stats.failed, stats.cancelled


def random_prompt(chance, number):
    """Return a prompt that shares its beginning with some, and its settings with none."""
    words = chance.choice([SYSTEM, "", SYSTEM[:9]]) + chance.choice(["Hi", "Who", "x" * 20, "?"])
    settings = {"seed": chance.randrange(2**40), "max_new_tokens": chance.randint(1, 14)}
    for table, share in ((SHAPED, 0.2), (SET, 0.12)):
        settings |= {k: v for k, v in table.items() if chance.random() < share}
    if settings["max_new_tokens"] < 3:
        settings.pop("min_new_tokens", None)
    if chance.random() < 0.25:
        settings["max_new_tokens"] = 14
        settings |= dict([chance.choice([*STRUCTURES.items()])])
        settings = {k: v for k, v in settings.items() if k not in SET or "penalty" in k}
    elif chance.random() < 0.2:
        settings = {k: v for k, v in settings.items() if k not in SHAPED} | {"temperature": 0.0}
    if chance.random() < 0.1:
        settings |= {"samples": 2} if settings.get("temperature") != 0.0 else {}
    return Prompt(words, Generation(**settings), number)


def test_each_answer_is_the_librarys_whatever_else_goes_on_and_nothing_is_compiled(engine, session):
    chance = random.Random(5)
    prompts = [random_prompt(chance, number) for number in range(70)]
    with_top = [one._replace(settings=replace(one.settings, top_logprobs=3)) for one in prompts]
    alone = session.run(with_top, detail=True)
    before, ears = engine.stats(), []
    for number, prompt in enumerate(prompts):
        ear, nth = Ear(), chance.randint(1, 3)
        detail = chance.choice([None, 0, 3])
        ticket = engine.submit(prompt, ear, detail=detail)
        fate = "goes" if number % 7 == 3 else "raises" if number % 11 == 5 else "stays"
        ears.append((prompt, ear, detail, ticket, fate))
        if fate == "goes":
            engine.cancel(ticket)
            engine.cancel(ticket)
        if fate == "raises":
            ticket.listener = lambda event: 1 / 0
        if chance.random() < 0.2:
            time.sleep(0.01 * nth)
    after = settled(engine)
    assert after.used == after.queued == 0 and after.compilations == before.compilations == 0
    for (prompt, ear, detail, ticket, fate), wanted in zip(ears, alone, strict=True):
        if fate == "stays":
            rows = ear.ended(prompt.settings.draws_each)
            assert all(map(is_answer, rows, wanted))
            assert all(bool(row[-1].completion.logprobs) == (detail is not None) for row in rows)
        elif fate == "raises":
            assert isinstance(ticket.error, ZeroDivisionError)
        else:
            assert not any(isinstance(row[-1], Failed) for row in ear.events.values())
    assert after.prefix_hits > before.prefix_hits and after.cached_tokens > before.cached_tokens
    assert after.failed == before.failed
    texts = sum(one.settings.draws_each for one in prompts)
    assert sum(ended(after)) - sum(ended(before)) == texts


LONG = Generation(max_new_tokens=40, seed=1, suppress_ids=(256, 257, 258))  # never ends by itself


def test_requests_begin_in_the_order_in_which_they_come(engine):
    order, ears = [], [Ear() for _ in range(9)]
    for number, ear in enumerate(ears):
        length = 40 if number < 8 else 1

        def listen(event, number=number, ear=ear):
            if isinstance(event, Started):
                order.append(number)
            ear(event)

        engine.submit(Prompt("abcdef", replace(LONG, max_new_tokens=length)), listen)
    for ear in ears:
        ear.ended()
    assert order == sorted(order)


def test_a_slot_is_free_within_a_chunk_of_its_cancellation(engine):
    settled(engine)
    used, tickets = [], []

    def first(event):
        if isinstance(event, Delta):
            used.append(engine.stats().used)
            engine.cancel(tickets[0])

    tickets.append(engine.submit(Prompt("a", replace(LONG, max_new_tokens=60)), first))
    assert settled(engine).used == 0 and used == [1]


def test_a_request_that_fails_leaves_its_neighbours_alone(engine, session):
    banned = replace(LONG, suppress_ids=tuple(range(259)), seed=4)
    prompts = [Prompt("ab", LONG), Prompt("ab", banned), Prompt(f"ab{DAMAGED}c", LONG)] * 3
    ears = [Ear() for _ in prompts]
    for prompt, ear in zip(prompts, ears, strict=True):
        engine.submit(prompt, ear)
    ((wanted,),) = session.run(prompts[:1])
    for number, ear in enumerate(ears):
        (row,) = ear.ended()
        if number % 3 == 0:
            assert is_answer(row, wanted)
            continue
        error = row[-1].error
        with pytest.raises(type(error)) as alone:
            session.run([prompts[number]])
        assert str(error) == str(alone.value)
        assert isinstance(error, errors.ConfigError if number % 3 == 1 else errors.NonFiniteError)
    again = Ear()  # in a slot that held numbers that are not finite
    engine.submit(prompts[0], again)
    assert is_answer(again.ended()[0], wanted)


def test_texts_end_when_their_time_is_over(session):
    now = [0.0]
    timed = replace(session, clock=lambda: now[0])
    with Engine(timed, **SIZES | {"prefix_tokens": 0}) as engine:
        late, waiting, limited = Ear(), Ear(), Ear()

        def tick(event):
            now[0] += 1.0
            late(event)

        engine.submit(Prompt("abc", LONG), tick, deadline=2.5)
        engine.submit(Prompt("abc", LONG), waiting, deadline=1.5)
        engine.submit(Prompt("abc", replace(LONG, max_seconds=0.5)), limited)
        (row,), (queued,) = late.ended(), waiting.ended()
        assert row[-1].completion.reason == queued[-1].completion.reason == Reason.TIME
        assert 0 < len(row[-1].completion.tokens) < 40 and queued[-1].completion.tokens == []
        now[0] += 1.0
        ((*_, last),) = limited.ended()
        assert last.completion.reason in (Reason.TIME, Reason.LENGTH)


FATES = {
    "ends": ("ab", {"max_new_tokens": 5}),
    "two": ("ab", {"max_new_tokens": 7, "samples": 2}),
    "long": (SYSTEM, {"max_new_tokens": 11}),
    "banned": ("ab", {"suppress_ids": tuple(range(259))}),
    "damaged": (f"ab{DAMAGED}c", {}),
    "late": ("ab", {}),
}
ACTION = st.tuples(st.sampled_from(sorted(FATES)), st.sampled_from((None, None, Started, Delta)))


@given(st.lists(ACTION, min_size=1, max_size=12))
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
def test_whoever_joins_leaves_fails_or_gives_up_ends_once_and_frees_the_slots(engine, actions):
    heard = []

    def submit(fate, leaves_at):
        text, changes = FATES[fate]
        events, tickets, ready = [], [], threading.Event()

        def listen(event):
            assert not tickets or not tickets[0].cancelled
            events.append(event)
            if leaves_at is not None and isinstance(event, leaves_at):
                ready.wait(60)
                engine.cancel(tickets[0])

        prompt = Prompt(text, replace(LONG, **changes))
        deadline = 0.0 if fate == "late" else None
        tickets.append(engine.submit(prompt, listen, deadline=deadline))
        ready.set()
        heard.append((fate, tickets[0], events))

    before = engine.stats()
    for action in actions:
        submit(*action)
    texts = sum(2 if fate == "two" else 1 for fate, _ in actions)
    end = time.monotonic() + 60
    while sum(ended(engine.stats())) - sum(ended(before)) < texts:
        assert time.monotonic() < end and engine.alive, engine.stats()
        time.sleep(0.002)
    assert sum(ended(settled(engine))) - sum(ended(before)) == texts
    for fate, ticket, events in heard:
        assert ticket.error is None
        for index in range(ticket.texts):
            own = [one for one in events if one.index == index]
            ends = [number for number, one in enumerate(own) if isinstance(one, Finished | Failed)]
            assert ends == [len(own) - 1] or (ticket.cancelled and not ends)
            if ends and fate in ("banned", "damaged"):
                assert isinstance(own[-1], Failed)
            elif ends:
                reason = own[-1].completion.reason
                assert reason == (Reason.TIME if fate == "late" else Reason.LENGTH)


def test_a_queue_has_an_end_and_a_drained_engine_takes_nothing(session):
    with Engine(session, **SIZES, queue=2) as engine:
        gate, ears = threading.Event(), [Ear() for _ in range(3)]
        hold = engine.run(lambda session: gate.wait(60))
        while not hold.running():
            time.sleep(0.002)
        for ear in ears[:2]:
            engine.submit(Prompt("a", replace(LONG, max_new_tokens=2)), ear)
        with pytest.raises(QueueFull, match="queue=2"):
            engine.submit(Prompt("a", LONG), ears[2])
        with pytest.raises(errors.ConfigError, match="3 texts at once"):
            engine.submit(Prompt("a", replace(LONG, samples=3)), ears[2])
        assert engine.stats().queued == 2 and not engine.drain(0.01)
        with pytest.raises(Draining):
            engine.submit(Prompt("a", LONG), ears[2])
        gate.set()
        assert engine.drain(60) and hold.result()
        assert all(isinstance(ear.ended()[0][-1], Finished) for ear in ears[:2])
        assert not ears[2].events


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("", LONG), "prompt is empty"),
        (Prompt("a" * 80, LONG), "context=64"),
        (Prompt("a", replace(LONG, bias=("x",))), "TEXT=NUMBER"),
        (Prompt("a", replace(LONG, stop=("\ufffd",))), "U\\+FFFD"),
        (Prompt("a", replace(LONG, regex="(a")), "can't be compiled"),
        (Prompt("a", replace(LONG, regex="a{70}")), "max_new_tokens=40"),
    ],
)
def test_what_the_library_refuses_is_refused_at_once(engine, session, prompt, message):
    with pytest.raises(errors.ConfigError, match=message):
        session.run([prompt])
    with pytest.raises(errors.ConfigError, match=message):
        engine.submit(prompt, print)


def test_what_can_not_share_slots_runs_whole_beside_them(engine, session):
    short = {"max_new_tokens": 6, "seed": 3}
    prompts = [
        Prompt("abc", Generation(beams=3, n_best=2, max_new_tokens=6)),
        Prompt("abc", Generation(**short, watermark=7)),
        Prompt("abc", Generation(**short, top_h=0.5, samples=2)),
    ]
    ears = [Ear() for _ in prompts]
    for prompt, ear in zip(prompts, ears, strict=True):
        engine.submit(prompt, ear)
    for ear, rows in zip(ears, session.run(prompts), strict=True):
        assert all(map(is_answer, ear.ended(len(rows)), rows))
    assert engine.run(lambda session: session.score(["abc"])).result() == session.score(["abc"])
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda session: 1 / 0).result()
    assert engine.stats().compilations == 0


def test_a_prefix_is_not_read_again(engine, session):
    prompt = Prompt(SYSTEM + " And who are you, then?", LONG)
    for cached in (False, True):
        ear = Ear()
        engine.submit(prompt._replace(settings=replace(LONG, max_new_tokens=9)), ear)
        ((begun, *_, last),) = ear.ended()
        assert begun.prompt_tokens == 49 and (begun.cached_tokens == 48) == cached
    ear = Ear()  # a chat that goes on: its last answer was decoded, not read
    goes_on = Prompt(
        [*session.ids(prompt.text), *last.completion.tokens, 65], replace(LONG, max_new_tokens=3)
    )
    engine.submit(goes_on, ear)
    assert ear.ended()[0][0].cached_tokens == 56
    assert is_answer(ear.ended()[0], session.run([goes_on])[0][0])


def test_a_context_may_be_shorter_than_a_piece_and_a_chunk():
    config = replace(CONFIG, context=3)
    session = session_on(config, random_params(config), Bytes())
    with Engine(session, slots=1) as engine:
        prompt, ear = Prompt([65, 66], Generation(max_new_tokens=1, seed=1)), Ear()
        engine.submit(prompt, ear)
        assert is_answer(ear.ended()[0], session.run([prompt])[0][0])


def test_steps_that_read_ahead_give_the_same_texts_in_fewer_steps(engine, session, monkeypatch):
    monkeypatch.setattr(slots, "SMALLEST", 64)
    repeats = Generation(max_new_tokens=20, temperature=0.0, bias=("a=40",))
    prompts = [
        Prompt("aaaa", repeats),
        Prompt("Hi, Hi", replace(LONG, max_new_tokens=30)),
        Prompt("a1 a1", Generation(regex="(a1 ){4}", max_new_tokens=14, temperature=0.0)),
        Prompt("abab" * 14, replace(LONG, max_new_tokens=7)),
        Prompt(SYSTEM, Generation(**SET, max_new_tokens=20, seed=2)),
    ]
    with Engine(session, slots=1, chunk=4, piece=8, lookup=3) as ahead:
        ahead.warm_up()
        pairs = [(Ear(), Ear()) for _ in prompts]
        for prompt, pair in zip(prompts, pairs, strict=True):
            for one, ear in zip((engine, ahead), pair, strict=True):
                one.submit(prompt, ear, detail=2)
        for plain, ear in pairs:
            assert is_answer(ear.ended()[0], plain.ended()[0][-1].completion)
        before, ear = settled(ahead), Ear()
        ahead.submit(prompts[0], ear)
        assert len(ear.ended()[0][-1].completion.tokens) == 20
        after = settled(ahead)
        assert after.steps - before.steps < 10 and after.compilations == 0
    delta = jaxgen.Delta(key_heads=2, value_heads=2, key_width=8, value_width=8)
    kinds = {"linear": jaxgen.LayerKind(mixer="delta")}
    config = replace(CONFIG, pattern=("linear",), kinds=kinds, delta=delta)
    with pytest.raises(errors.ConfigError, match="lookup=3: speculation takes back up to 4"):
        Engine(session_on(config, random_params(config), Bytes()), lookup=3)
    with pytest.raises(errors.ConfigError, match="lookup=64 must be less than context=64"):
        Engine(session, lookup=64)
    monkeypatch.setattr(engines, "_shares", lambda session: False)
    with pytest.raises(errors.ConfigError, match="lookup=3, but texts of this model share no"):
        Engine(session, lookup=3)


def test_layers_with_a_window_and_a_cache_of_bytes():
    config = replace(CONFIG, layers=2, window=8, pattern=("local", "global"))
    session = session_on(config, random_params(config), Bytes())
    settings = Generation(temperature=0.0, max_new_tokens=5)
    prompts = [Prompt(text, settings) for text in (SYSTEM, SYSTEM + "!", "a")]
    with Engine(session, **SIZES, context=32, cache="int8") as engine:
        ears = [Ear() for _ in prompts]
        for prompt, ear in zip(prompts, ears, strict=True):
            engine.submit(prompt, ear)
        for ear, (wanted,) in zip(ears, session.run(prompts), strict=True):
            assert is_answer(ear.ended()[0], wanted)


def test_a_round_that_fails_fails_what_runs_and_the_engine_goes_on(session, monkeypatch):
    with Engine(session, **SIZES) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(slots.Slots, "decode", lambda self, steps: 1 / 0)
            ear = Ear()
            engine.submit(Prompt("a", LONG), ear)
            assert isinstance(ear.ended()[0][-1].error, ZeroDivisionError)
        with monkeypatch.context() as patch:
            patch.setattr(engines, "complete", lambda *about: 1 / 0)
            ear = Ear()
            engine.submit(Prompt("a", Generation(beams=2, n_best=2)), ear)
            for row in ear.ended(2):  # what does not share slots must not wait for ever either
                assert isinstance(row[-1].error, ZeroDivisionError)
        again = Ear()
        engine.submit(Prompt("a", LONG), again)
        assert isinstance(again.ended()[0][-1], Finished)


def test_an_engine_without_memory_for_slots_ends_and_nobody_waits(session, monkeypatch):
    with Engine(session, **SIZES) as engine:
        gate, ears = threading.Event(), [Ear() for _ in range(5)]
        engine.run(lambda session: gate.wait(60))
        for number, ear in enumerate(ears):
            beams = {} if number < 4 else {"beams": 2}
            engine.submit(Prompt("a", Generation(max_new_tokens=4, **beams)), ear)
        work = engine.run(lambda session: 3)
        monkeypatch.setattr(slots.Slots, "decode", lambda self, steps: 1 / 0)
        monkeypatch.setattr(engine, "_make_rounds", lambda: 1 / 0)
        gate.set()
        assert all(isinstance(ear.ended()[0][-1], Failed) for ear in ears)
        with pytest.raises(ZeroDivisionError):
            work.result(60)
        assert not engine.alive
        with pytest.raises(Draining):
            engine.submit(Prompt("a", LONG), print)


@pytest.mark.parametrize(("seconds", "steps"), [(1e9, 4), (1e-9, 1)])
def test_pieces_are_one_token_and_then_chunks_that_are_short_where_steps_are_slow(
    engine, monkeypatch, seconds, steps
):
    monkeypatch.setattr(rounds, "CHUNK_SECONDS", seconds)
    ear = Ear()
    engine.submit(Prompt("abc", LONG), ear)
    pieces = [len(one.tokens) for one in ear.ended()[0] if isinstance(one, Delta)]
    assert pieces[0] == 1 and set(pieces[1:-1]) == {steps}
