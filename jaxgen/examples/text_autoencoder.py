"""A variational autoencoder of texts: rewrite them, walk between two, sample new ones.

A text's latent is what the decoder attends to instead of a source, so `vae.begin` and `vae.step`
are a cache and a step as any other, and `jaxgen.decode` does the rest.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen.models.classic import vae

START, EOS, LENGTH = 10, 11, 6
# Five texts: n counts on for as long as n itself says.
TEXTS = [[3, 4, 5, EOS], [7, 8, 9, 9, EOS], [1, 1, EOS], [6, 5, 4, 3, 2, EOS], [0, 2, EOS]]


@partial(jax.jit, static_argnames="config")
def decode_latents(params, config, latents, key, sample):
    """Return the tokens [B, LENGTH] that the decoder writes for latents [B, Z]."""
    first, cache = vae.begin(params, config, latents, LENGTH + 1)
    step, stop, prompt = vae.step(params, config), jnp.asarray([EOS]), first[:, None]
    return jaxgen.decode(step, cache, first, key, sample, LENGTH, stop=stop, prompt=prompt)[0]


def main() -> None:
    model = jaxgen.ModelConfig(
        vocab_size=12, context=8, layers=1, d_model=16, heads=2, topology="encoder_decoder",
        norm="rms", feed="relu", biases="none", init_std=0.1,
    )  # fmt: skip
    config = vae.VAE(model=model, latent=2, slots=1, start=START, eos=EOS)
    lengths = np.asarray([len(text) for text in TEXTS])
    tokens = np.asarray([text + [0] * (LENGTH - len(text)) for text in TEXTS])
    fit = vae.Fit(steps=250, batch=16, rate=1e-2, cycle=150, cycles=1, free=1.0, hide=0.5)
    params, _ = vae.train(config, tokens, lengths, fit, seed=0)

    key, greedy = jax.random.key(0), jaxgen.greedy()
    means = vae.posterior(params, config, tokens, lengths).mean
    again = np.asarray(decode_latents(params, config, means, key, greedy))
    print("rewritten", again.tolist())
    for row, text in zip(again, TEXTS, strict=True):
        assert row[: len(text)].tolist() == text

    share = jnp.linspace(0, 1, len(TEXTS))[:, None]
    line = decode_latents(params, config, (1 - share) * means[0] + share * means[1], key, greedy)
    print("from the first to the second", line.tolist())
    assert line[0, :4].tolist() == TEXTS[0] and line[-1, :5].tolist() == TEXTS[1]

    prior = jax.random.normal(jax.random.key(1), means.shape)
    warm = jaxgen.chain(jaxgen.temperature(1.0))
    sampled = decode_latents(params, config, prior, key, warm)
    print("sampled", sampled.tolist())
    assert len({tuple(row) for row in sampled.tolist()}) > 1


if __name__ == "__main__":
    main()
