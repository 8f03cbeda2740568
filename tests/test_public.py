"""The public face, used as the README shows it."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import jaxgen
from jaxgen import errors, tree


def test_the_face_works_as_written():
    config = jaxgen.preset("gpt2-124m", layers=2, d_model=16, heads=2, vocab_size=31, context=16)
    config = config.replace(dropout=0.0)
    key = jax.random.key(0)
    params = jaxgen.init(config, key)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), jaxgen.abstract(config)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert jaxgen.axes(config)["layers"]["attn"]["q"] == "LDNH"
    tokens = jnp.array([[1, 2, 3]])
    out = jaxgen.apply(params, config, tokens)
    assert out.logits.shape == (1, 3, 31)
    sample = jaxgen.chain(jaxgen.temperature(0.7), jaxgen.top_k(9), jaxgen.top_p(0.9))
    made = jaxgen.generate(params, config, tokens, key, sample=sample, length=5)
    assert made.shape == (1, 5)

    def step(tokens, cache):
        return jax.nn.one_hot((tokens + 1) % 7, 7) * 50.0, cache

    counted, _ = jaxgen.decode(step, None, jnp.array([2]), key, jaxgen.chain(), 6)
    assert counted.tolist() == [[3, 4, 5, 6, 0, 1]]


def test_a_research_loop_needs_nothing_but_optax():
    import optax

    config = jaxgen.ModelConfig(vocab_size=31, context=16, layers=1, d_model=16, heads=2)
    tx = optax.adam(1e-2)
    state = jaxgen.train_state(jaxgen.init(config, jax.random.key(0)), tx, jax.random.key(1))
    step = jax.jit(partial(jaxgen.train_step, config=config, optimizer=tx, loss=jaxgen.causal_loss))
    tokens = jnp.arange(17)[None] % 5
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2


def test_params_are_a_plain_nested_dict_of_arrays():
    config = jaxgen.ModelConfig(vocab_size=31, context=16, layers=2, d_model=16, heads=2)
    params = jaxgen.init(config, jax.random.key(0))
    nodes = [params]
    while nodes:
        node = nodes.pop()
        assert type(node) is dict or isinstance(node, jax.Array)
        nodes += node.values() if isinstance(node, dict) else []
    assert "layers/attn/q" in tree.flatten(params)


def test_every_public_name_is_there_and_a_wrong_one_is_not():
    for name in jaxgen.__all__:
        assert getattr(jaxgen, name) is not None
        assert name in dir(jaxgen)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        jaxgen.sampel


def test_a_folder_opens_as_text_in_and_text_out(tmp_path):
    from jaxgen.tokens.plain import Bytes

    config = jaxgen.ModelConfig(vocab_size=259, context=32, layers=1, d_model=16, heads=2)
    words, params = Bytes(), jaxgen.init(config, jax.random.key(0))
    jaxgen.save(tmp_path / "model", config, params, tokenizer=words)
    session = jaxgen.open(tmp_path / "model")
    text = session.generate("abc", temperature=0.0, max_new_tokens=5)
    # The same in the terms of `decode`: a prefilled cache, a step, and a chain of processors.
    eos, length = words.special.eos, 5
    ids = jnp.asarray([[words.special.bos, *words.encode("abc")]])
    first, cache = jaxgen.prefill(params, config, ids, jnp.asarray([ids.shape[1]]), 16)
    step, key = jaxgen.model_step(params, config), jax.random.key(0)
    stop = jnp.asarray([eos])
    made, _ = jaxgen.decode(step, cache, first, key, jaxgen.greedy(), length, stop=stop)
    row = made[0].tolist()
    assert text == words.decode(row[: row.index(eos)] if eos in row else row)
    pieces = words.surface.pieces
    one_of = jaxgen.chain(jaxgen.choices(["ja", "nein"], pieces, eos, within=length))
    ends = {"stop": stop, "prompt": ids, "lengths": jnp.asarray([ids.shape[1]])}
    made, _ = jaxgen.decode(step, cache, first, key, one_of, length, **ends)
    row = made[0].tolist()
    assert words.decode(row[: row.index(eos)]) in ("ja", "nein")
    assert jaxgen.empty_cache(config, 2, 8) is not None


def test_presets_are_named_with_their_nearest():
    with pytest.raises(errors.ConfigError, match=r"'gpt2-124' is unknown .*'gpt2-124m'"):
        jaxgen.preset("gpt2-124")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 1}, "context=1 must be at least 2"),
        ({"heads": 5}, "d_model=768 is not a multiple of heads=5; nearest that work: heads=4 or 6"),
        ({"kv_heads": 5}, "heads=12 is not a multiple of kv_heads=5; nearest .*kv_heads=4 or 6"),
        ({"positions": "rope", "head_dim": 7}, "head_dim=7 is odd"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"unroll": 0}, "unroll=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"pattern": ()}, "names no layer"),
        ({"pattern": ("local",)}, "window is null"),
        ({"window": 3}, "window=3 has no effect"),
        ({"norm_epsilon": 0.0}, "norm_epsilon=0.0 must be greater than 0"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_its_value(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        jaxgen.ModelConfig(**changes)
