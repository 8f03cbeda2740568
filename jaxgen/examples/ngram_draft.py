"""An n-gram as the draft of a Transformer: exact speculative decoding, almost for nothing.

The 3-gram is counted from the training text in a moment; it guesses four tokens, the Transformer
reads them in one step and keeps those it agrees with. Greedy output is the same token for token.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from jaxgen.models.classic import ngram

VOCAB, GUESSES, LENGTH = 24, 4, 32


def train(config, tokens):
    """Return the parameters of a Transformer after a few steps on rows of tokens [B, T]."""
    optimizer = optax.adam(5e-3)
    training = jaxgen.train_state(
        jaxgen.init(config, jax.random.key(0)), optimizer, jax.random.key(1)
    )
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    step = jax.jit(
        partial(jaxgen.train_step, config=config, optimizer=optimizer, loss=jaxgen.causal_loss),
        donate_argnums=0,
    )
    for _ in range(80):
        training, _ = step(training, batch)
    return training.params


def main() -> None:
    song = np.asarray([1, 2, 3, 4, 5, 3, 4, 6, 7, 8, 9, 7, 8, 10, 11, 12] * 4, np.int32)
    tokens = np.stack([np.roll(song, -shift)[:48] for shift in range(8)])
    config = jaxgen.ModelConfig(
        vocab_size=VOCAB, context=96, layers=2, d_model=32, heads=2, positions="rope"
    )
    params = train(config, jnp.asarray(tokens))

    order3 = ngram.NGram(vocab_size=VOCAB, order=3)
    counted = ngram.train(
        order3, tokens.reshape(-1), np.arange(0, tokens.size + 1, tokens.shape[1])
    )
    prompt, lengths = jnp.asarray(tokens[:2, :6]), jnp.full(2, 6)
    greedy = jaxgen.greedy()
    _, begun = ngram.prefill(counted, order3, prompt, lengths)
    draft = jaxgen.draft_model(ngram.step(counted, order3), begun, greedy, GUESSES)

    def read(ids, cache):
        """Return (logits [B, T, V], cache): the Transformer reads all guesses at once."""
        out = jaxgen.apply(params, config, ids, cache=cache)
        return out.logits, out.cache

    room = prompt.shape[1] + LENGTH + GUESSES + 1
    first, cache = jaxgen.prefill(params, config, prompt, lengths, room)
    result = jaxgen.speculate(
        read, cache, first, jax.random.key(2), greedy, LENGTH, draft, prompt=prompt, lengths=lengths
    )
    plain = jaxgen.generate(params, config, prompt, jax.random.key(2), length=LENGTH, sample=greedy)
    print(result.tokens)
    assert result.steps is not None and result.accepted is not None
    print(f"{LENGTH} tokens in {result.steps} steps; {result.accepted.sum()} guesses accepted")
    assert (result.tokens == plain).all() and result.steps < LENGTH


if __name__ == "__main__":
    main()
