"""Tasks give what the model says of each text alone, whatever batch it is in."""

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.tokens.plain import Bytes

TOKENIZER = Bytes()
TEXTS = ["a bee", "the quick brown fox", "x", "colour"]
BASE = {"vocab_size": 262, "context": 64, "layers": 1, "d_model": 16, "heads": 2, "init_std": 0.3}


def model_of(**fields):
    config = jaxgen.ModelConfig(**(BASE | fields))
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(1))
    return LoadedModel(config, params, TOKENIZER, start=256)


def test_rewriting_gives_the_same_text_in_any_batch():
    model = model_of(topology="encoder_decoder", output="untied", init_std=1.5)
    # With no length either, and with a last batch that is not full.
    for how in (Generation(beams=2, max_new_tokens=6), Generation(beams=2), Generation()):
        together = tasks.rewrite(model, TEXTS, how, batch=3)
        alone = [tasks.rewrite(model, [text], how)[0] for text in TEXTS]
        assert together == alone and len(set(together)) > 1


def test_rewrites_are_texts_of_the_beams_the_likeliest_first():
    model = model_of(topology="encoder_decoder", output="untied", init_std=1.5)
    how = Generation(max_new_tokens=5, beams=4, n_best=3, length_penalty=0.0)
    found = tasks.rewrites(model, TEXTS, how)
    assert [ways[0].text for ways in found] == tasks.rewrite(model, TEXTS, how)
    for text, ways in zip(TEXTS, found, strict=True):
        assert len({tuple(way.tokens) for way in ways}) == 3
        said = [log_probability(model, text, way.tokens) for way in ways]
        assert said == sorted(said, reverse=True)


def log_probability(model, source, ids):
    memory = jaxgen.encode(model.params, model.config, np.asarray([model.ids(source)]))
    read = np.asarray([[model.start, *ids[:-1]]])
    out = jaxgen.apply(model.params, model.config, read, memory=memory)
    return float(jax.nn.log_softmax(out.logits)[0, np.arange(len(ids)), ids].sum())


def test_classes_are_the_softmax_of_apply_the_likeliest_first():
    model = model_of(topology="encoder", head="classes", classes=3)
    found = tasks.classify(model, TEXTS, batch=2)
    row = np.asarray([model.ids(TEXTS[1])])
    wanted = np.asarray(jax.nn.softmax(jaxgen.apply(model.params, model.config, row).logits))[0]
    assert [name for name, _ in found[1]] == [str(i) for i in np.argsort(-wanted)]
    np.testing.assert_allclose([p for _, p in found[1]], np.sort(wanted)[::-1], rtol=1e-5)


def test_scores_and_vectors_are_those_of_the_text_alone():
    model = model_of()
    scores, vectors = tasks.score(model, TEXTS, batch=2), tasks.embed(model, TEXTS, batch=4)
    row = np.asarray([model.ids(TEXTS[3])])
    out = jaxgen.apply(model.params, model.config, row)
    said = jax.nn.log_softmax(out.logits)[0, np.arange(row.shape[1] - 1), row[0, 1:]]
    assert scores[3] == (pytest.approx(float(said.sum()), rel=1e-5), row.shape[1] - 1)
    np.testing.assert_allclose(vectors[3], out.hidden[0].mean(axis=0), atol=1e-5)


def test_a_mask_is_filled_with_the_likeliest_pieces():
    model = model_of(topology="encoder", head="mlm")
    found = tasks.fill_mask(model, ["a <mask> c <mask>", "<mask>!"], best=3, batch=2)
    assert [len(text) for text in found] == [2, 1]
    row = np.asarray([[256, 259, ord("!"), 257]])
    probs = np.asarray(jax.nn.softmax(jaxgen.apply(model.params, model.config, row).logits))[0, 1]
    np.testing.assert_allclose(
        [p for _, p in found[1][0]], np.sort(probs[:259])[::-1][:3], rtol=1e-4
    )


def test_a_text_longer_than_the_context_is_refused_or_cut_as_asked_and_progress_is_told():
    model, long = model_of(), "a" * 100
    with pytest.raises(ConfigError, match=r"text 1 has 102 tokens, more than context=64"):
        tasks.score(model, ["a", long])
    done = []
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 64 tokens"):
        found = tasks.score(
            model, ["a", long], batch=2, overflow="cut", progress=lambda *x: done.append(x)
        )
    kept = tasks.score(model, ["a", "a" * 62], batch=2)
    assert found == kept and done == [(2, 2)]


def test_a_task_that_the_model_can_not_do_is_refused():
    model = model_of()
    for task in (tasks.rewrite, tasks.classify, tasks.fill_mask):
        with pytest.raises(ConfigError, match=r"topology=decoder|head=lm"):
            task(model, ["a"])
    with pytest.raises(ConfigError, match=r"text 1 is empty"):
        tasks.embed(model, ["a", ""])


def test_a_session_embeds_classifies_and_scores_as_the_tasks_do_and_an_encoder_writes_nothing():
    from jaxgen.text.session import Session

    reader = model_of(topology="encoder", head="classes", classes=3)
    session = Session(reader, reader.params)
    np.testing.assert_array_equal(session.embed(TEXTS), tasks.embed(reader, TEXTS))
    assert session.classify(TEXTS) == tasks.classify(reader, TEXTS)
    with pytest.raises(ConfigError, match="gives no next token"):
        session.generate("a")
    writer = model_of()
    assert Session(writer, writer.params).score(TEXTS) == tasks.score(writer, TEXTS)
