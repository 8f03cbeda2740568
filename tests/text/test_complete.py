"""Text in, text out: streamed as completed at once, alone as in a batch."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from sessions import session_on

import jaxgen
from jaxgen import errors, tokens, tree
from jaxgen.pretrained import model
from jaxgen.text import programs
from jaxgen.text import session as sessions
from jaxgen.text.batch_decoding import CHUNK
from jaxgen.text.loaded_model import check_list
from jaxgen.text.prompts import ids_of
from jaxgen.text.request import Generation
from jaxgen.text.session import Prompt

CONFIG = jaxgen.ModelConfig(vocab_size=259, context=96, layers=2, d_model=16, heads=2, init_std=0.5)


def wanted(**settings):
    return Generation(**{"temperature": 1.0, "seed": 4} | settings)


@pytest.fixture(scope="module")
def session():
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    params = jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))
    return session_on(CONFIG, params, tokenizer)


def test_streamed_pieces_join_to_the_completion(session):
    whole = session.complete(["héllo"], wanted(max_new_tokens=30))
    pieces = list(session.stream("héllo", wanted(max_new_tokens=30)))
    assert "".join(pieces) == whole[0] and len(pieces) > 1


def test_a_completion_does_not_depend_on_its_neighbours(session):
    alone = session.complete(["one"], wanted(max_new_tokens=20))
    batch = session.complete(["one", "a much longer prompt", "x"], wanted(max_new_tokens=20))
    assert batch[0] == alone[0]
    assert len(set(batch)) == 3


def test_several_samples_of_one_prompt_differ(session):
    texts = session.complete(["a", "b"], wanted(samples=3, max_new_tokens=20))
    assert len(texts) == 6 == len(set(texts))


def test_the_loop_is_compiled_once_beside_what_reads_the_prompt(session, compiled, monkeypatch):
    threads = []

    def watched(*args):
        future = ahead(*args)
        threads.append(future)
        return future

    ahead = programs._compile_more
    monkeypatch.setattr(programs, "_compile_more", watched)
    for _ in range(2):  # of a shape that no other test has
        session.complete(["a"] * 7, wanted(max_new_tokens=50, top_logprobs=3))
    (first, second) = threads
    assert first.done() and second is None
    assert [compiled.count(f"jit({name})") for name in ("_begin", "_more")] == [1, 1]


def readable(text, size):
    """The first `size` characters in a row of a text, that are characters."""
    for place in range(4, len(text) - size):
        if "\ufffd" not in text[place : place + size]:
            return text[place : place + size]
    raise AssertionError(text)


def test_a_text_ends_before_its_stop_string_and_no_part_of_one_is_shown(session):
    (free,) = session.complete(["héllo"], wanted(max_new_tokens=60))
    for size in (1, 2, 5):
        string = readable(free, size)
        before = free[: free.index(string)]
        settings = wanted(max_new_tokens=60, stop=("never seen", string))
        pieces = list(session.stream("héllo", settings))
        assert "".join(pieces) == before
        assert session.complete(["héllo"], settings) == [before]


def test_requests_of_a_batch_end_each_for_its_own_reason(session):
    ticks = iter(range(100))
    timed = dataclasses.replace(session, clock=lambda: float(next(ticks)))
    long = wanted(max_new_tokens=40)
    free = session.complete(["abc"] * 4, long)
    string = readable(free[1], 2)
    ends = [{}, {"stop": (string,)}, {"max_new_tokens": 11}, {"max_seconds": 1.5}]
    asked = [
        Prompt("abc", dataclasses.replace(long, **end), number) for number, end in enumerate(ends)
    ]
    found = [one for (one,) in timed.run(asked)]
    assert [one.reason.name for one in found] == ["STOP", "STRING", "LENGTH", "TIME"]
    assert found[0].text == free[0] and found[1].text == free[1][: free[1].index(string)]
    # The clock ticks once a chunk, so the budget ends within the second.
    for row, count in ((2, 11), (3, 2 * CHUNK)):
        assert len(found[row].text) <= count and free[row].startswith(found[row].text[:-1])
        assert found[row].text


def test_endings_that_can_not_be_are_refused(session):
    with pytest.raises(errors.ConfigError, match="stop=''"):
        wanted(stop=("",))
    with pytest.raises(errors.ConfigError, match="seconds=0"):
        wanted(max_seconds=0.0)


def test_the_completion_ends_at_the_end_token(session):
    eos = session.tokenizer.special.eos
    flat = tree.flatten(session.params)
    bias = jnp.zeros_like(flat["final_norm/bias"]).at[0].set(50.0)
    table = flat["embed/tokens"].at[eos, 0].set(9.0)
    eager = dataclasses.replace(
        session,
        params=tree.unflatten(flat | {"embed/tokens": table, "final_norm/bias": bias}),
    )
    assert eager.complete(["abc"], wanted(max_new_tokens=30)) == [""]
    assert list(eager.stream("abc", wanted(max_new_tokens=30))) == []


def test_logits_that_are_not_finite_end_in_an_error_not_in_text(session):
    flat = tree.flatten(session.params)
    sick = flat | {"final_norm/scale": flat["final_norm/scale"].at[0].set(jnp.nan)}
    broken = dataclasses.replace(session, params=tree.unflatten(sick))
    with pytest.raises(errors.NonFiniteError, match="new token 1 are not finite") as caught:
        broken.complete(["abc"], wanted(max_new_tokens=4))
    assert caught.value.exit_code == 6


def test_prompts_that_cannot_be_completed_are_refused(session):
    with pytest.raises(errors.ConfigError, match="prompt is empty"):
        session.complete([""], wanted(max_new_tokens=3))
    with pytest.raises(errors.ConfigError, match=r"101 tokens but context=96.*by 6"):
        session.complete(["a" * 100], wanted(max_new_tokens=None))
    with pytest.raises(errors.ConfigError, match=re.escape("at most 46")):
        session.complete(["a" * 49], wanted(max_new_tokens=47))


@pytest.mark.parametrize(
    ("call", "part"),
    [(lambda s: s.generate(b"The"), "is bytes, not a text; give a str"),
     (lambda s: ids_of(s.model, 5), "prompt=5 is int, neither"),
     (lambda s: ids_of(s.model, [1, 2.5]), "prompt holds 2.5, which is no token id"),
     (lambda s: ids_of(s.model, {"a": 1}), "is dict, neither a text nor token ids"),
     (lambda s: check_list([1, 2]), "texts[0]=1 is int, not a text"),
     (lambda s: check_list(["a", None]), "texts[1]=None is NoneType, not a text"),
     (lambda s: s.chat("hello"), "messages='hello' is one text; give a list"),
     (lambda s: s.chat([{"role": "assistant", "content": "x"}]), "nothing to answer")],
)  # fmt: skip
def test_what_is_no_text_is_one_line(session, call, part):
    with pytest.raises(errors.ConfigError) as error:
        call(session)
    assert part in str(error.value)


def test_prompts_of_many_lengths_compile_few_programs(session):
    before = programs._more._cache_size()
    for width in range(1, 30, 4):
        session.complete(["a" * width], wanted(max_new_tokens=9))
    assert programs._more._cache_size() - before <= 2


def test_a_saved_model_is_loaded_with_every_bit(session, tmp_path):
    params = session.params | {
        "embed": {n: w.astype(jnp.bfloat16) for n, w in session.params["embed"].items()}
    }
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    config = CONFIG.replace(param_dtype="bfloat16")
    jaxgen.save(tmp_path / "model", config, params, tokenizer=session.tokenizer)
    found, loaded = jaxgen.load(tmp_path / "model")
    assert found == config
    for path, leaf in tree.flatten(params).items():
        other = tree.flatten(loaded)[path]
        assert other.dtype == leaf.dtype and (other == leaf).all(), path
    again = sessions.open_session(tmp_path / "model")
    rounded = sessions.open_session(tmp_path / "model", weights="int8")
    kinds = jax.tree.leaves(rounded.params["layers"])
    assert any(leaf.dtype == "int8" for leaf in kinds)
    assert rounded.complete(["héllo"], wanted(max_new_tokens=20))[0]
    assert again.tokenizer.fingerprint == session.tokenizer.fingerprint
    with pytest.raises(errors.ConfigError, match="exists already"):
        jaxgen.save(tmp_path / "model", config, params)


@pytest.mark.parametrize("damage", ["truncate", "other config", "no weights", "no folder", "html"])
def test_a_damaged_model_folder_is_refused_in_one_line(session, tmp_path, damage):
    folder = tmp_path / "model"
    jaxgen.save(folder, CONFIG, session.params)
    weights = folder / model.WEIGHTS
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "html":
        weights.write_text("<html>sign in</html>")
    elif damage == "other config":
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("d_model: 16", "d_model: 32"))
    elif damage == "no weights":
        weights.unlink()
    else:
        folder = tmp_path / "absent"
    kind = errors.ConfigError if damage == "no folder" else errors.CheckpointError
    with pytest.raises(kind) as caught:
        jaxgen.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_rows_beyond_the_tokenizer_are_never_drawn(session):
    config = CONFIG.replace(vocab_size=2000)
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    padded = session_on(config, params, session.tokenizer)
    texts = padded.complete(["a"], wanted(samples=8, max_new_tokens=30))
    assert len(set(texts)) == 8
