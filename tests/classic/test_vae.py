"""The autoencoder of texts: its terms against closed forms, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import jaxgen
from jaxgen import ModelConfig
from jaxgen.decoding.combined_steps import fused
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic import mixture, vae
from jaxgen.models.classic.vae import VAE, Fit, Gaussian

MODEL = ModelConfig(
    vocab_size=12, context=8, layers=1, d_model=16, heads=2, topology="encoder_decoder",
    norm="rms", feed="relu", biases="none", init_std=0.1,
)  # fmt: skip
CONFIG = VAE(model=MODEL, latent=2, slots=1, start=10, eos=11)
FIT = Fit(steps=250, batch=16, rate=1e-2, cycle=150, cycles=1, free=1.0, hide=0.5)
# Five texts: n counts on for as long as n itself says.
TEXTS = [[3, 4, 5, 11], [7, 8, 9, 9, 11], [1, 1, 11], [6, 5, 4, 3, 2, 11], [0, 2, 11]]
LENGTHS = np.asarray([len(row) for row in TEXTS])
TOKENS = np.asarray([row + [0] * (6 - len(row)) for row in TEXTS])


@pytest.fixture(scope="module")
def trained():
    return vae.train(CONFIG, TOKENS, LENGTHS, FIT, seed=0)


def test_the_divergence_is_the_integral_that_defines_it():
    seen = Gaussian(jnp.asarray([[0.3, -1.2]]), jnp.asarray([[-0.5, 0.8]]))
    for i, found in enumerate(np.asarray(vae.divergence(seen))[0]):
        q = stats.norm(float(seen.mean[0, i]), np.exp(0.5 * float(seen.spread[0, i])))
        wanted, _ = integrate.quad(
            lambda x, q=q: q.pdf(x) * (q.logpdf(x) - stats.norm.logpdf(x)), -12, 12
        )
        assert found == pytest.approx(wanted, rel=1e-5)


def test_the_bound_rises_with_its_samples_from_the_elbo_to_the_likelihood(trained):
    params, _ = trained
    text, size = TOKENS[:1], LENGTHS[:1]

    def averaged(bound, keys):
        run = jax.jit(lambda keys: jax.lax.map(bound, keys).mean())
        return float(run(jax.random.split(jax.random.key(1), keys)))

    def weighted(samples):
        return lambda key: vae.bound(params, CONFIG, text, size, key, samples)

    elbo = averaged(lambda key: vae.elbo(params, CONFIG, text, size, key), 500)
    assert averaged(weighted(1), 500) == pytest.approx(elbo, abs=0.3)
    many = averaged(weighted(10_000), 4)
    assert many > elbo + 0.05
    # The truth, by adding up the plane of latents.
    axis = np.linspace(-6, 6, 121)
    plane = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    texts, sizes = (np.repeat(x, len(plane), axis=0) for x in (text, size))
    said = jax.jit(vae.likelihood, static_argnums=1)(params, CONFIG, texts, sizes, plane)
    prior = stats.norm.logpdf(plane).sum(axis=1) + 2 * np.log(axis[1] - axis[0])
    truth = np.logaddexp.reduce(np.asarray(said) + prior)
    assert many == pytest.approx(truth, abs=0.15) and elbo < truth


def test_it_learns_texts_by_their_latents(trained):
    _, history = trained
    assert history[-1].nll < 0.5 * history[0].nll and history[-1].divergence > 1


def test_decoding_says_what_the_likelihood_says(trained):
    params, _ = trained
    latent = jax.random.normal(jax.random.key(5), (1, 2))
    token, cache = vae.begin(params, CONFIG, latent, 8)
    step, total = jax.jit(vae.step(params, CONFIG)), 0.0
    for wanted in TEXTS[0]:
        logits, cache = step(token, cache)
        total += float(jax.nn.log_softmax(logits)[0, wanted])
        token = jnp.asarray([wanted])
    whole = jax.jit(vae.likelihood, static_argnums=1)(
        params, CONFIG, TOKENS[:1], LENGTHS[:1], latent
    )
    assert float(whole[0]) == pytest.approx(total, abs=1e-3)


def test_it_drafts_for_another_latent_and_weighs_in(trained):
    params, _ = trained
    means = vae.posterior(params, CONFIG, TOKENS[:2], LENGTHS[:2]).mean
    step, key = vae.step(params, CONFIG), jax.random.key(0)

    @jax.jit
    def both(own, other):
        first, cache = vae.begin(params, CONFIG, own, 8)
        _, second = vae.begin(params, CONFIG, other, 8)
        chain = jaxgen.chain(jaxgen.temperature(1.0))
        draft = jaxgen.draft_model(step, second, chain, 2)
        found = jaxgen.speculate(
            jaxgen.multi_token_step(step), cache, first, key, jaxgen.greedy(), 4, draft,
            prompt=first[:, None], stop=jnp.asarray([11]),
        )  # fmt: skip
        mixed, _ = fused(step, step, 0.5)(first, (cache, second))
        return found.tokens, mixed, step(first, cache)[0], step(first, second)[0]

    tokens, mixed, alone, beside = both(means, means[::-1])
    assert tokens[0].tolist() == TEXTS[0] and tokens[1].tolist() == TEXTS[1][:4]
    wanted = jax.nn.log_softmax(alone) + 0.5 * jax.nn.log_softmax(beside)
    np.testing.assert_allclose(mixed, wanted, atol=1e-5)


def test_free_nats_and_hidden_words_change_the_loss_as_they_say(trained):
    params, _ = trained

    def at(step, **changes):
        fit = Fit(**{**vars(FIT), **changes})
        return run(params, CONFIG, fit, TOKENS, LENGTHS, jax.random.key(0), step)

    run = jax.jit(vae.loss, static_argnums=(1, 2))
    plain, terms = at(0, free=0.0, hide=0.0)
    assert float(plain) == pytest.approx(float(terms.nll), rel=1e-6)
    total, _ = at(150, free=0.0, hide=0.0)
    assert float(total - plain) == pytest.approx(float(terms.divergence), abs=1e-4)
    total, blind = at(150, free=20.0, hide=0.9)
    assert float(total - blind.nll) == pytest.approx(40.0, rel=1e-4)
    assert float(blind.nll) > float(terms.nll) + 0.01


def test_the_weight_of_the_divergence_rises_in_each_cycle():
    found = [float(FIT.weight(step)) for step in (0, 30, 75, 149, 150)]
    assert found == pytest.approx([0, 0.4, 1, 1, 1])
    twice = Fit(**{**vars(FIT), "cycles": 2})
    assert [float(twice.weight(s)) for s in (150, 225, 300)] == [0, 1, 1]


def test_bad_sizes_and_texts_are_refused():
    with pytest.raises(ConfigError, match="topology=decoder"):
        VAE(model=ModelConfig(vocab_size=12), latent=2, slots=1, start=0, eos=1)
    with pytest.raises(ConfigError, match="eos=12 is outside"):
        VAE(model=MODEL, latent=2, slots=1, start=0, eos=12)
    with pytest.raises(DataError, match=r"lengths\[0\]=0 must be 1 to 6"):
        vae.train(CONFIG, TOKENS, LENGTHS * 0, FIT, seed=0)
    with pytest.raises(DataError, match="exceed context=8"):
        vae.train(CONFIG, np.zeros((2, 9), int), np.ones(2, int), FIT, seed=0)


def test_steps_of_the_mixture_give_a_text_the_mean_of_its_likelihoods(trained):
    params, _ = trained
    latents = mixture.draws(CONFIG, 3, jax.random.key(2))
    tokens, lengths = jnp.asarray(TOKENS), jnp.asarray(LENGTHS)

    @jax.jit
    def both(params):
        belief = mixture.start(params, CONFIG, latents, len(tokens), tokens.shape[1])
        first = jax.nn.logsumexp(belief.weight[..., None] + belief.logprobs, axis=1)
        step, said = mixture.step(params, CONFIG), [first]
        for column in tokens.T[:-1]:
            logits, belief = step(column, belief)
            said.append(logits)
        own = jnp.take_along_axis(jnp.stack(said, 1), tokens[..., None], axis=2)[..., 0]
        stepped = jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None], own, 0).sum(1)
        whole = [
            vae.likelihood(params, CONFIG, tokens, lengths, jnp.repeat(z[None], len(tokens), 0))
            for z in latents
        ]
        return stepped, jax.nn.logsumexp(jnp.stack(whole), axis=0) - jnp.log(3), jnp.stack(whole)

    stepped, wanted, whole = both(params)
    np.testing.assert_allclose(stepped, wanted, atol=1e-4)
    assert (whole.max(0) - whole.min(0)).max() > 0.5  # the draws differ, or a mean shows nothing


def test_the_mixture_reads_prompts_of_any_length_as_it_reads_tokens(trained):
    params, _ = trained
    latents = mixture.draws(CONFIG, 3, jax.random.key(2))
    prompt, lengths = jnp.asarray(TOKENS[:2]), jnp.asarray([2, 5])

    @jax.jit
    def both(params):
        step = mixture.step(params, CONFIG)
        first, belief = mixture.prefill(params, CONFIG, latents, prompt, lengths, 7)
        read, _ = step(first, belief)
        alone, wanted = mixture.start(params, CONFIG, latents, 2, 7), []
        for column in prompt.T[:5]:
            logits, alone = step(column, alone)
            wanted.append(logits)
        return read, jnp.stack([wanted[1][0], wanted[4][1]])

    np.testing.assert_allclose(*both(params), atol=1e-5)
