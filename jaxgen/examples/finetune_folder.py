"""Fine-tune a folder: load config, weights and tokenizer, train on a text, save, generate.

`python finetune_folder.py FOLDER TEXT OUT` takes a run or a Hugging Face folder of a decoder.
Without arguments a small model is made first. `jaxgen train my.yaml init_from=FOLDER` does the same
with checkpoints, validation and resume; this is the loop itself, to be changed. `layout="hf"` in
`jaxgen.save` writes what transformers opens.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from jaxgen.tokens import TokenizerSettings, train

CONTEXT, ROWS, STEPS = 32, 8, 40


def small_decoder(folder: Path) -> Path:
    """Write a small decoder that reads bytes, its weights as initialised."""
    config = jaxgen.ModelConfig(
        vocab_size=259, context=64, layers=2, d_model=64, heads=4,
        norm="rms", positions="rope", feed="swiglu", biases="none", output="untied",
    )  # fmt: skip
    tokenizer = train(TokenizerSettings(kind="bytes"), [])
    jaxgen.save(folder, config, jaxgen.init(config, jax.random.key(0)), tokenizer=tokenizer)
    return folder


def main() -> None:
    home = tempfile.TemporaryDirectory()
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("folder", "text", "out"):
        parser.add_argument(name, nargs="?", type=Path)
    args = parser.parse_args()
    if args.folder and not args.out:
        parser.error("give FOLDER, TEXT and OUT, or none of them")
    folder = args.folder or small_decoder(Path(home.name) / "small")
    text = args.text.read_text(encoding="utf-8") if args.text else "One step, then another. " * 200
    out = args.out or Path(home.name) / "tuned"

    config, params = jaxgen.load(folder)
    tokenizer = jaxgen.open(folder).tokenizer
    ids = np.asarray(tokenizer.encode(text), np.int32)
    count = (len(ids) - 1) // CONTEXT
    tokens = ids[: count * CONTEXT].reshape(count, CONTEXT)
    targets = ids[1 : count * CONTEXT + 1].reshape(count, CONTEXT)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
    state = jaxgen.train_state(params, optimizer, jax.random.key(0))
    step = jax.jit(
        partial(jaxgen.train_step, config=config, optimizer=optimizer, loss=jaxgen.causal_loss),
        donate_argnums=0,
    )
    order = np.random.default_rng(0)
    for number in range(STEPS):
        rows = order.integers(0, count, ROWS)
        batch = {"tokens": jnp.asarray(tokens[rows]), "targets": jnp.asarray(targets[rows])}
        state, metrics = step(state, batch)
        if number % 10 == 0 or number == STEPS - 1:
            print(f"step {number:2d}  loss {metrics['loss']:.3f}")

    jaxgen.save(out, config, state.params, tokenizer=tokenizer)
    print(repr(jaxgen.open(out).generate("One step", max_new_tokens=24, temperature=0.0)))
    home.cleanup()


if __name__ == "__main__":
    main()
