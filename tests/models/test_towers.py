"""Encoders, encoder-decoders and heads agree with themselves along every path."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tree
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.train.losses import causal_loss

SMALL = {"vocab_size": 29, "context": 16, "layers": 2, "d_model": 16, "heads": 2, "init_std": 0.3}
T5 = jaxgen.ModelConfig(
    topology="encoder_decoder",
    encoder_layers=1,
    positions="relative",
    relative=jaxgen.Relative(buckets=8, distance=12, tables="own"),
    query_scalar=1.0,
    norm="rms",
    biases="none",
    output_scale="root",
    **SMALL,
)
BART = jaxgen.ModelConfig(
    topology="encoder_decoder",
    norm_at="post",
    position_offset=2,
    embed_norm="norm",
    output_bias="bias",
    **SMALL,
)
BERT = jaxgen.ModelConfig(
    topology="encoder",
    norm_at="post",
    embed_norm="norm",
    token_types=2,
    head="mlm",
    output_bias="bias",
    **SMALL,
)
WAVES = jaxgen.ModelConfig(
    topology="encoder_decoder",
    positions="sinusoid_t2t",
    position_offset=2,
    embed_norm="tokens",
    **SMALL,
)
GEMMA = jaxgen.ModelConfig(
    topology="encoder_decoder",
    towers=jaxgen.Towers(
        encoder_layers=3,
        encoder_d_model=12,
        encoder_heads=3,
        encoder_kv_heads=3,
        encoder_d_ff=20,
        tokens="own",
    ),
    norm="rms_offset",
    norm_at="both",
    positions="rope",
    kv_heads=1,
    pattern=("local", "global"),
    window=3,
    **SMALL,
)
TWO_TOWERS = {"t5": T5, "bart": BART, "waves": WAVES, "gemma": GEMMA}
SOURCE = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TARGET = np.array([[5, 3, 5, 8], [2, 7, 1, 8]])


@lru_cache
def params_of(config):
    return random_params(config)


@pytest.mark.parametrize("config", TWO_TOWERS.values(), ids=TWO_TOWERS)
def test_cached_decoding_of_two_towers_matches_the_full_forward(config):
    params = params_of(config)

    @jax.jit
    def whole(params):
        memory = api.encode(params, config, SOURCE, segments=SEGMENTS)
        return api.apply(params, config, TARGET, memory=memory).logits

    @jax.jit
    def begin(params):
        memory = api.encode(params, config, SOURCE, segments=SEGMENTS)
        cache = api.empty_cache(config, 2, 6, memory=5)
        out = api.apply(params, config, TARGET[:, :2], cache=cache, memory=memory)
        return out.logits, out.cache

    @jax.jit
    def step(params, tokens, cache):
        out = api.apply(params, config, tokens, cache=cache)
        return out.logits, out.cache

    first, cache = begin(params)
    rows = [first]
    for place in (2, 3):
        logits, cache = step(params, jnp.asarray(TARGET[:, place : place + 1]), cache)
        rows.append(logits)
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), whole(params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", TWO_TOWERS.values(), ids=TWO_TOWERS)
def test_padding_of_the_source_changes_nothing_and_its_tokens_do(config):
    params = params_of(config)

    @jax.jit
    def logits(source, segments):
        memory = api.encode(params, config, source, segments=segments)
        return api.apply(params, config, TARGET, memory=memory).logits

    plain = logits(SOURCE, SEGMENTS)
    padded = logits(np.where(SEGMENTS > 0, SOURCE, 17), SEGMENTS)
    np.testing.assert_allclose(plain, padded, atol=1e-6)
    other = logits(np.where(np.arange(5) == 1, 17, SOURCE), SEGMENTS)
    assert np.abs(np.asarray(plain - other)).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("config", TWO_TOWERS.values(), ids=TWO_TOWERS)
def test_packed_pairs_match_each_pair_alone(config):
    params = params_of(config)
    source = np.array([[3, 1, 4, 9, 2, 0]])
    target = np.array([[5, 3, 2, 7, 1, 0]])
    apart = [(source[:, :3], target[:, :2]), (source[:, 3:5], target[:, 2:5])]
    packed_source, packed_target = np.array([[1, 1, 1, 2, 2, 0]]), np.array([[1, 1, 2, 2, 2, 0]])
    places, own = jnp.array([[0, 1, 2, 0, 1, 0]]), jnp.array([[0, 1, 0, 1, 2, 0]])

    @jax.jit
    def packed(params):
        memory = api.encode(params, config, source, positions=places, segments=packed_source)
        out = api.apply(
            params, config, target, positions=own, segments=packed_target, memory=memory
        )
        return out.logits

    @jax.jit
    def alone(pair):
        memory = api.encode(params, config, pair[0])
        return api.apply(params, config, pair[1], memory=memory).logits

    wanted = np.concatenate([np.asarray(alone(pair)) for pair in apart], axis=1)
    np.testing.assert_allclose(packed(params)[:, :5], wanted, rtol=1e-4, atol=1e-5)


def test_an_encoder_sees_both_sides_but_no_padding_and_knows_token_types():
    params = params_of(BERT)

    @jax.jit
    def logits(tokens, types):
        return api.apply(params, BERT, tokens, segments=SEGMENTS, types=types).logits

    types = np.array([[0, 0, 0, 1, 1]] * 2)
    plain = logits(SOURCE, types)
    later = logits(np.where(np.arange(5) == 2, 17, SOURCE), types)
    assert np.abs(np.asarray(plain - later))[:, 0].max(axis=-1).min() > 1e-3
    padded = logits(np.where(SEGMENTS > 0, SOURCE, 17), types)
    np.testing.assert_allclose(plain[1, :3], padded[1, :3], atol=1e-6)
    other = logits(SOURCE, np.zeros_like(types))
    assert np.abs(np.asarray(plain - other)[0]).max() > 1e-3


HEADS = [
    ("encoder", "classes", (2, 3)),
    ("decoder", "classes", (2, 3)),
    ("encoder_decoder", "classes", (2, 3)),
    ("encoder", "spans", (2, 5, 2)),
    ("decoder", "spans", (2, 5, 2)),
    ("encoder", "lm", (2, 5, 29)),
    ("encoder", "none", None),
]


@pytest.mark.parametrize(("topology", "head", "shape"), HEADS)
def test_heads_give_logits_of_their_shape_whatever_is_padded(topology, head, shape):
    classes = 3 if head == "classes" else None
    config = jaxgen.ModelConfig(topology=topology, head=head, classes=classes, **SMALL)
    params = params_of(config)
    assert tree.flatten(api.axes(config)).keys() == tree.flatten(params).keys()

    @jax.jit
    def logits(tokens):
        memory = None
        if topology == "encoder_decoder":
            memory = api.encode(params, config, tokens, segments=SEGMENTS)
        return api.apply(params, config, tokens, segments=SEGMENTS, memory=memory).logits

    found = logits(SOURCE)
    if shape is None:
        assert found is None
        return
    assert found.shape == shape
    other = logits(np.where(SEGMENTS > 0, SOURCE, 17))
    real = SEGMENTS > 0 if len(shape) == 3 else slice(None)
    np.testing.assert_allclose(found[real], other[real], atol=1e-6)


def test_generation_with_a_memory_matches_a_loop_over_full_forward_passes():
    params = params_of(T5)
    memory = jax.jit(lambda p: api.encode(p, T5, SOURCE, segments=SEGMENTS))(params)
    prompt = jnp.zeros((2, 1), jnp.int32)
    generate = partial(jaxgen.generate, config=T5, prompt=prompt, key=jax.random.key(0), length=4)
    found = jax.jit(lambda p: generate(p, memory=memory))(params)
    logits = jax.jit(lambda tokens: api.apply(params, T5, tokens, memory=memory).logits)
    tokens = np.zeros((2, 5), np.int32)
    for place in range(4):
        tokens[:, place + 1] = logits(tokens)[:, place].argmax(-1)
    np.testing.assert_array_equal(found, tokens[:, 1:])


def test_relative_positions_set_no_limit_to_what_is_read_and_written():
    params = random_params(T5)
    source = np.arange(1, 41)[None] % 29
    wide = T5.replace(context=64)
    memory, wider = (jaxgen.encode(params, config, source) for config in (T5, wide))
    np.testing.assert_array_equal(memory.state, wider.state)
    assert source.shape[1] > T5.context
    key, begin = jax.random.key(0), np.zeros((1, 1), np.int32)
    made = [
        jaxgen.generate(
            params, config, begin, key, sample=jaxgen.greedy(), length=24, memory=memory
        )
        for config in (T5, wide)
    ]
    np.testing.assert_array_equal(*made)
    with pytest.raises(ConfigError, match="40 tokens do not fit context of 16"):
        jaxgen.encode(random_params(BART), BART, source)


def test_a_cache_is_reordered_with_its_memory():
    params = params_of(T5)
    memory = jax.jit(lambda p: api.encode(p, T5, SOURCE, segments=SEGMENTS))(params)

    @jax.jit
    def step(tokens, cache, memory):
        return api.apply(params, T5, tokens, cache=cache, memory=memory)

    cache = step(TARGET[:, :2], api.empty_cache(T5, 2, 4, memory=5), memory).cache
    swapped = step(jnp.array([[1], [2]]), cache.take(jnp.array([1, 0])), None)
    plain = step(jnp.array([[2], [1]]), cache, None)
    np.testing.assert_allclose(swapped.logits, plain.logits[::-1], rtol=1e-5, atol=1e-6)


PREFIX = jaxgen.ModelConfig(prompt="both", positions="rope", **SMALL)


def test_a_prefix_sees_itself_from_both_sides_and_what_follows_sees_no_future():
    params = params_of(PREFIX)
    tokens, marks = np.array([[5, 3, 8, 2, 7, 1]]), np.array([[1, 1, 1, 0, 0, 0]])

    @jax.jit
    def logits(tokens, marks):
        return api.apply(params, PREFIX, tokens, prefix=marks).logits[0]

    def changed(place, marks=marks):
        other = np.where(np.arange(6) == place, 17, tokens)
        difference = np.abs(np.asarray(logits(tokens, marks) - logits(other, marks)))
        return (difference.max(axis=-1) > 1e-4).tolist()

    assert changed(2) == [True] * 6
    assert changed(4) == [False] * 4 + [True] * 2
    assert changed(2, np.zeros_like(marks)) == [False] * 2 + [True] * 4


def test_the_loss_of_a_prefix_row_sees_its_prefix_from_both_sides():
    batch = {
        "tokens": np.array([[5, 3, 8, 2, 7, 1]]),
        "targets": np.array([[3, 8, 2, 7, 1, 0]]),
        "weights": np.array([[0, 0, 1, 1, 1, 0]], np.float32),
        "prefix": np.array([[1, 1, 1, 0, 0, 0]]),
    }
    logits = api.apply(params_of(PREFIX), PREFIX, batch["tokens"], prefix=batch["prefix"]).logits
    said = jax.nn.log_softmax(logits)[0, [2, 3, 4], [2, 7, 1]]
    loss = causal_loss(params_of(PREFIX), PREFIX, batch)
    np.testing.assert_allclose(loss.total, -said.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("marks", "segments", "part"),
    [
        ([0, 1, 1, 0, 0, 0], None, r"prefix\[0, 1\]=1 comes after a 0"),
        ([1, 0, 1, 0, 0, 0], None, r"prefix\[0, 2\]=1 comes after a 0"),
        ([1, 1, 0, 0, 1, 0], [1, 1, 1, 2, 2, 2], r"prefix\[0, 4\]=1 comes after a 0"),
        ([2, 1, 0, 0, 0, 0], None, r"prefix\[0, 0\]=2 must be"),
        ([-1, 0, 0, 0, 0, 0], None, r"prefix\[0, 0\]=-1 must be"),
    ],
)
def test_a_prefix_that_is_not_at_the_beginning_is_refused(marks, segments, part):
    tokens = np.arange(6)[None]
    segments = None if segments is None else np.asarray([segments])
    for call in (api.apply, api.hidden):
        with pytest.raises(ConfigError, match=part):
            call(params_of(PREFIX), PREFIX, tokens, prefix=np.asarray([marks]), segments=segments)


def test_packed_prefixes_see_themselves_as_they_do_alone():
    params, tokens = params_of(PREFIX), np.arange(7)[None]
    positions = np.asarray([[0, 1, 2, 3, 0, 1, 2]])
    marks, segments = np.asarray([[1, 1, 0, 0, 1, 1, 0]]), np.asarray([[1, 1, 1, 1, 2, 2, 2]])
    packed = api.apply(
        params, PREFIX, tokens, positions=positions, segments=segments, prefix=marks
    ).logits
    for part in (slice(0, 4), slice(4, 7)):
        alone = api.apply(params, PREFIX, tokens[:, part], prefix=marks[:, part]).logits
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


def test_generation_reads_its_prompt_as_a_prefix_as_training_does():
    params = params_of(PREFIX)
    prompt, lengths = np.array([[5, 3, 8, 2], [7, 1, 0, 0]]), jnp.array([4, 2])
    generate = partial(jaxgen.generate, config=PREFIX, key=jax.random.key(0), length=3)
    found = jax.jit(lambda p: generate(p, prompt=jnp.asarray(prompt), lengths=lengths))(params)
    whole = jax.jit(lambda tokens, marks: api.apply(params, PREFIX, tokens, prefix=marks).logits)
    for row in (0, 1):
        length = int(lengths[row])
        tokens = np.zeros((1, 7), np.int32)
        tokens[0, :length] = prompt[row, :length]
        marks = (np.arange(7) < length)[None].astype(np.int32)
        for place in range(length, length + 3):
            tokens[0, place] = whole(tokens, marks)[0, place - 1].argmax()
        assert found[row].tolist() == tokens[0, length : length + 3].tolist()


DECODER = jaxgen.ModelConfig(**SMALL)
MISTAKES = [
    (lambda: api.encode(api.abstract(DECODER), DECODER, SOURCE), "has no encoder"),
    (lambda: api.apply(api.abstract(T5), T5, TARGET), "pass memory=encode"),
    (lambda: api.empty_cache(T5, 1, 4), "holds keys of a memory"),
    (lambda: api.empty_cache(BERT, 1, 4), "has no cache"),
    (lambda: api.apply(api.abstract(T5), T5, TARGET, types=TARGET), "embed.types=0"),
    (lambda: T5.replace(head="mlm"), "needs topology=encoder"),
    (lambda: BERT.replace(encoder_layers=2), "encoder_layers=2 has no effect"),
    (lambda: BERT.replace(towers=jaxgen.Towers(encoder_d_ff=2)), "towers.encoder_d_ff=2 has no"),
    (lambda: jaxgen.Towers(encoder_d_ff=0), "towers.encoder_d_ff=0 must be at least 1"),
    (
        lambda: T5.replace(towers=jaxgen.Towers(encoder_heads=3)),
        "of the encoder: d_model=16 is not a multiple of heads=3",
    ),
    (
        lambda: T5.replace(towers=jaxgen.Towers(encoder_d_model=12)),
        "encoder_d_model=12 with d_model=16: .* give towers.tokens=own",
    ),
    (
        lambda: api.encode(api.abstract(GEMMA), GEMMA, inputs_embeds=np.zeros((1, 2, 16))),
        "tokens have vectors of 12",
    ),
    (lambda: BERT.replace(towers=jaxgen.Towers(tokens="own")), "towers.tokens=own has no effect"),
    (lambda: BERT.replace(embed_norm="first"), "norm_at=post .* give embed.norm=norm"),
    (
        lambda: jaxgen.ModelConfig(embed_norm="first", layer_weights="shared"),
        "with embed.norm=first the first layer is unlike",
    ),
    (lambda: BERT.replace(classes=2), "classes is given with head=classes"),
    (lambda: BERT.replace(head="classes"), "classes is given with head=classes"),
    (lambda: T5.replace(prompt="both"), "prompt=both has no effect"),
    (lambda: T5.replace(head="pooled"), "needs topology=encoder"),
    (lambda: api.apply(api.abstract(BERT), BERT, TARGET, prefix=TARGET), "nothing is seen ahead"),
    (lambda: T5.replace(relative_buckets=2), "at least 4 buckets"),
    (lambda: BERT.replace(relative_buckets=8), "has no effect"),
    (lambda: T5.replace(position_offset=2), "has no effect"),
]


@pytest.mark.parametrize(("call", "words"), MISTAKES)
def test_what_a_topology_has_no_use_for_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "value"),
    [("feed", "relu"), ("biases", "no_qkv"), ("norm_at", "post"), ("norm_epsilon", 0.5)],
)
def test_an_encoder_may_have_a_form_of_its_own(name, value):
    both = jaxgen.ModelConfig(
        vocab_size=16, context=8, layers=1, d_model=8, heads=2, topology="encoder_decoder"
    )
    own = both.replace(towers=jaxgen.Towers(**{f"encoder_{name}": value}))
    assert getattr(own, name) == getattr(both, name) != value == getattr(own.encoder(), name)
    params, ids = random_params(both), np.arange(8)[None]
    one, other = (
        jaxgen.encode(p, c, ids).state for p, c in ((params, both), (random_params(own), own))
    )
    assert np.abs(one - other).max() > 1e-3
    assert jaxgen.abstract(own)["layers"].keys() == jaxgen.abstract(both)["layers"].keys()
