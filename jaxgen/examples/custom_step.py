"""Decode a model of your own: any function (tokens, cache) -> (logits, cache) is a decoding step.

The decoding loop knows nothing of Transformers. Here the model is a bigram table counted from a
text; sampling, stop tokens and beam search are the same code that decodes a Llama.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen

TEXT = "the cat sat on the mat. the dog sat on the log. a cat saw a dog. "
END = ord(".")


def bigram_step(log_probs, tokens, cache):
    """Return (logits [B, V], cache): a bigram needs the last token alone, so the cache is a count.

    tokens: [B], the last token of each row. cache: any pytree; rows of arrays are on axis 0.
    """
    return log_probs[tokens], cache + 1


def main() -> None:
    ids = np.frombuffer(TEXT.encode(), np.uint8)
    counts = np.full((128, 128), 1e-6)
    np.add.at(counts, (ids[:-1], ids[1:]), 1.0)
    log_probs = jnp.asarray(np.log(counts / counts.sum(1, keepdims=True)), jnp.float32)

    step = partial(bigram_step, log_probs)
    first = jnp.full(4, ord(" "))  # each row goes on from this token
    sample = jaxgen.chain(jaxgen.temperature(0.8), jaxgen.top_p(0.95))
    tokens, _ = jaxgen.decode(
        step, jnp.zeros(4, jnp.int32), first, jax.random.key(0), sample, 24, stop=jnp.array([END])
    )
    for row in np.asarray(tokens):
        words = bytes(row.tolist())
        print("sampled:", words[: words.index(END) + 1 if END in words else None].decode())

    start, plain = jnp.zeros(1, jnp.int32), jaxgen.chain()
    result = jaxgen.beam_search(step, start, first[:1], None, plain, 12, jaxgen.beams(4))
    print("best of 4 beams:", bytes(np.asarray(result.tokens[0, 0]).tolist()).decode())


if __name__ == "__main__":
    main()
