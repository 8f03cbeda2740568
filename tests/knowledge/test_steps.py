"""Steps that look something up equal sums by hand, alone, fused, and in decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.knowledge import memory, steps
from jaxgen.text.model_steps import StepWithHidden

CONFIG = jaxgen.ModelConfig(vocab_size=11, context=32, layers=1, d_model=8, heads=2)
V = CONFIG.vocab_size
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def params():
    params = jaxgen.init(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: x * 4, params)


@jax.jit
def forward(params, rows):
    out = jaxgen.apply(params, CONFIG, rows)
    return out.logits, out.hidden


def logprobs(params, rows):
    """Log-probabilities [.., T, V] of what follows each token, in float64."""
    logits = np.asarray(forward(params, jnp.asarray(rows))[0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def compiled(step):
    """A step as one program; by itself each of its operations is one."""
    return jax.jit(lambda tokens, cache: step(tokens, cache))


def states(params, rows):
    return np.asarray(forward(params, jnp.asarray(rows))[1], np.float64)


PROMPTS = np.asarray([[1, 2, 3], [4, 5, 6], [7, 1, 3], [2, 2, 6]])  # two documents each, last: 3, 6
SCORES = np.asarray([[0.3, -1.0], [2.0, 0.5]], np.float32)


def documents(params):
    """(step, cache, first tokens) of two requests with two documents each."""
    prompts, lengths = jnp.asarray(PROMPTS[[0, 2, 1, 3]]), jnp.full(4, 3)
    _, cache = jaxgen.prefill(params, CONFIG, prompts, lengths, 16)
    return jaxgen.model_step(params, CONFIG), steps.document_cache(cache, SCORES, V)


@pytest.mark.parametrize("marginal", ["token", "sequence"])
def test_documents_are_summed_as_by_hand(params, marginal):
    step, cache = documents(params)
    step = compiled(steps.documents_step(step, marginal))
    text = np.asarray([[3, 5, 0, 9], [6, 1, 1, 2]])
    total = np.zeros(2)
    for at in range(3):
        ours, cache = step(jnp.asarray(text[:, at]), cache)
        np.testing.assert_allclose(np.exp(ours).sum(-1), 1, atol=1e-5)
        total += np.take_along_axis(np.asarray(ours, np.float64), text[:, at + 1, None], 1)[:, 0]
    prior = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
    for request, own in enumerate(([0, 2], [1, 3])):
        rows = np.asarray([[*PROMPTS[one], *text[request, 1:]] for one in own])
        each = logprobs(params, rows)[:, 2:-1]
        said = np.take_along_axis(each, rows[:, 3:, None], 2)[..., 0]  # [K, T]
        by_hand = {
            "token": np.log((prior[request][:, None] * np.exp(said)).sum(0)).sum(),
            "sequence": np.log((prior[request] * np.exp(said.sum(1))).sum()),
        }
        assert abs(total[request] - by_hand[marginal]) < 3e-6
        assert abs(by_hand["token"] - by_hand["sequence"]) > 1e-4


def test_beams_over_documents_are_those_of_all_texts(params):
    step, cache = documents(params)
    step = steps.documents_step(step, "sequence")
    first = jnp.asarray([3, 6])
    best = jaxgen.beam_search(step, cache, first, None, jaxgen.chain(), 2, jaxgen.beams(V))
    step = compiled(step)
    for request in range(2):
        scores = {}
        one = jax.tree.map(lambda x: x, cache).take(jnp.asarray([request]))
        top, after = step(first[request : request + 1], one)
        for token in range(V):
            then, _ = step(jnp.asarray([token]), after)
            for other in range(V):
                scores[token, other] = float(top[0, token] + then[0, other])
        assert tuple(np.asarray(best.tokens[request, 0]).tolist()) == max(scores, key=scores.get)


@pytest.fixture(scope="module")
def remembered(params, tmp_path_factory):
    """(tokens [8, 12] of a text, the memory of their states)."""
    home = tmp_path_factory.mktemp("memory") / "states"
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (8, 13), 0, V))
    batch = {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 12), np.float32)
    }  # fmt: skip
    batch["weights"][0, :3] = 0
    assert memory.build_memory(params, CONFIG, [batch], home) == 93
    return tokens, batch, home


def knn_by_hand(opened, queries, temperature, count):
    rows = np.asarray(opened.rows.codes, np.float64) * np.asarray(opened.rows.scales)[:, None]
    q = np.zeros((len(queries), V))
    for i, query in enumerate(queries):
        distance = np.square(rows - query).sum(1)
        for at in np.argsort(distance)[:count]:
            after = int(opened.tokens[opened.rows.ids[at]])
            q[i, after] += np.exp(-distance[at] / temperature)
    return q / q.sum(1, keepdims=True)


def test_knn_is_the_sum_over_the_nearest_states(params, remembered):
    _, _, home = remembered
    opened = memory.open_memory(home, params, CONFIG)
    prompts = jnp.asarray(PROMPTS)
    first, cache = jaxgen.prefill(params, CONFIG, prompts, jnp.full(4, 3), 16)
    base = StepWithHidden(params, CONFIG)
    step = jax.jit(
        lambda w: steps.knn_step(base, opened, w, temperature=2.0, count=9)(first, cache)
    )
    ours, _ = step(0.3)
    q = knn_by_hand(opened, states(params, PROMPTS)[:, -1], 2.0, 9)
    p = np.exp(logprobs(params, PROMPTS)[:, -1])
    np.testing.assert_allclose(np.exp(ours), 0.7 * p + 0.3 * q, atol=1e-6)
    off, _ = step(0.0)
    np.testing.assert_allclose(np.exp(off), p, atol=1e-6)


def test_evidence_gives_the_probabilities_of_the_step(params, remembered):
    tokens, batch, home = remembered
    opened = memory.open_memory(home, params, CONFIG)
    evidence = memory.look_up(opened, params, CONFIG, [batch], count=9)
    counted = batch["weights"] > 0
    q = knn_by_hand(opened, states(params, tokens[:, :-1])[counted], 2.0, 9)
    p = np.exp(logprobs(params, tokens[:, :-1])[counted])
    targets = tokens[:, 1:][counted]
    expected = np.log((0.6 * p + 0.4 * q)[np.arange(len(targets)), targets])
    np.testing.assert_allclose(evidence.mixed(2.0, 0.4), expected, atol=2e-5)
    temperature, weight = memory.choose(evidence)  # of the text itself, which it knows by heart
    assert weight == 0.95 and evidence.mixed(temperature, weight).mean() > -0.5


def cache_by_hand(params, prompt, text, size, flatness):
    """q of each token of a text after a prompt, by the states of all before it."""
    rows, q = [*prompt, *text], []
    hidden = states(params, [rows])[0]
    for at in range(len(prompt) - 1, len(rows) - 1):
        begin = max(at - size, 0)
        shares = np.exp(flatness * hidden[begin:at] @ hidden[at])
        row = np.zeros(V)
        np.add.at(row, rows[begin + 1 : at + 1], shares / shares.sum() if at > begin else 0)
        q.append(row)
    return np.asarray(q)


@pytest.mark.parametrize("size", [4, 20])
def test_a_cache_is_the_sum_over_the_states_of_the_text_so_far(params, size):
    prompts, lengths = np.asarray([[1, 2, 3, 2, 1, 3], [4, 0, 0, 0, 0, 0]]), np.asarray([6, 1])
    text = np.asarray([[2, 5, 1, 2], [5, 4, 5, 5]])
    first, cache = jaxgen.prefill(params, CONFIG, jnp.asarray(prompts), jnp.asarray(lengths), 16)
    begin = jax.jit(lambda cache: steps.state_cache(cache, params, CONFIG, prompts, lengths, size))
    held = begin(cache)
    step = compiled(steps.cache_step(StepWithHidden(params, CONFIG), 0.25, flatness=0.3))
    ours = []
    for tokens in (first, *jnp.asarray(text[:, :-1]).T):
        logits, held = step(tokens, held)
        ours.append(np.exp(logits))
    for row in range(2):
        prompt = prompts[row, : lengths[row]].tolist()
        q = cache_by_hand(params, prompt, text[row].tolist(), size, 0.3)
        p = np.exp(logprobs(params, [[*prompt, *text[row]]])[0, lengths[row] - 1 : -1])
        share = 0.25 * (q.sum(1, keepdims=True) > 0)
        np.testing.assert_allclose(np.stack(ours)[:, row], (1 - share) * p + share * q, atol=1e-6)


def test_steps_fuse_with_one_another_and_decode(params, remembered):
    _, _, home = remembered
    opened, prompts = memory.open_memory(home, params, CONFIG), jnp.asarray(PROMPTS)
    lengths = jnp.full(4, 3)
    first, cache = jaxgen.prefill(params, CONFIG, prompts, lengths, 16)
    base = StepWithHidden(params, CONFIG)
    knn = steps.knn_step(base, opened, 0.2, temperature=3.0, count=5, hidden=True)
    both = steps.cache_step(knn, 0.1, flatness=0.5)
    held = jax.jit(lambda x: steps.state_cache(x, params, CONFIG, prompts, lengths, 8))(cache)
    flat = lambda tokens, cache: (jnp.zeros((len(tokens), V)), cache)  # noqa: E731
    step = jaxgen.fused(both, flat, 0.5)
    sample = jaxgen.chain(jaxgen.temperature(0.8))
    tokens, _ = jaxgen.decode(step, (held, ()), first, KEY, sample, 5)
    plain, _ = jaxgen.decode(both, held, first, KEY, sample, 5)
    np.testing.assert_array_equal(tokens, plain)  # an even prior changes nothing
    off = steps.knn_step(base, opened, 0.0, temperature=3.0, count=5)
    tokens, _ = jaxgen.decode(off, cache, first, KEY, jaxgen.greedy(), 5)
    greedy = jaxgen.generate(params, CONFIG, prompts, KEY, length=5)
    np.testing.assert_array_equal(tokens, greedy)


def test_what_the_model_bans_stays_banned(params, remembered):
    opened = memory.open_memory(remembered[2], params, CONFIG)
    first, cache = jaxgen.prefill(params, CONFIG, jnp.asarray(PROMPTS), jnp.full(4, 3), 16)
    base = StepWithHidden(params, CONFIG, 5)
    logits, _ = compiled(steps.knn_step(base, opened, 0.5, temperature=9.0))(first, cache)
    assert np.isneginf(logits[:, 5:]).all() and np.isfinite(logits[:, :5]).all()


def test_a_memory_of_another_model_and_arguments_out_of_range_are_refused(params, remembered):
    home = remembered[2]
    with pytest.raises(ConfigError, match="states of another model"):
        memory.open_memory(home, jax.tree.map(lambda x: x + 1, params), CONFIG)
    with pytest.raises(CheckpointError, match="does not exist; `jaxgen eval RUN --knn"):
        memory.open_memory(home / "absent", params, CONFIG)
    opened, base = memory.open_memory(home, params, CONFIG), StepWithHidden(params, CONFIG)
    for call in (
        lambda: steps.knn_step(base, opened, 1.5, temperature=1.0),
        lambda: steps.knn_step(base, opened, 0.5, temperature=0.0),
        lambda: steps.cache_step(base, -0.1, flatness=1.0),
        lambda: steps.documents_step(base, "both"),
    ):
        with pytest.raises(ConfigError):
            call()
