"""A model inside shard_map over four devices: prints which results differ from one device's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxgen

CONFIG = jaxgen.ModelConfig(
    vocab_size=31, context=32, layers=1, d_model=8, heads=2, norm="rms", positions="rope",
    feed="swiglu", biases="none",
)  # fmt: skip
KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 31, (8, 9)).astype(np.int32)
ROWS, WHOLE = P("i"), P()
SAMPLE = jaxgen.chain(jaxgen.temperature(0.7), jaxgen.top_p(0.9))


def gradient(params, tokens):
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    return jax.grad(lambda p: jaxgen.causal_loss(p, CONFIG, batch).total)(params)


# (function of params and rows, whether its result is the sum over devices)
CASES = {
    "logits": (lambda p, t: jaxgen.apply(p, CONFIG, t).logits, False),
    "gradient": (gradient, True),
    "greedy": (lambda p, t: jaxgen.generate(p, CONFIG, t, KEY, length=3), False),
    "beams": (
        lambda p, t: jaxgen.generate_beams(p, CONFIG, t, jaxgen.beams(2), length=3).tokens,
        False,
    ),
    "lookup": (
        lambda p, t: jaxgen.generate_lookup(p, CONFIG, t, KEY, length=3, count=2).tokens,
        False,
    ),
}


def main() -> None:
    params, mesh = jaxgen.init(CONFIG, KEY), Mesh(np.array(jax.devices()), ("i",))
    wrong = []
    for name, (function, summed) in CASES.items():
        wanted = jax.jit(function)(params, TOKENS)
        for check in (True, False) if name in ("gradient", "greedy") else (True,):

            def part(p, t, function=function, psum=summed and not check):
                found = function(p, t)
                return jax.lax.psum(found, "i") if psum else found

            out = WHOLE if summed else ROWS
            whole = jax.shard_map(
                part, mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=out, check_vma=check
            )
            found = jax.jit(whole)(params, TOKENS)
            near = jax.tree.map(lambda x, y: bool(jnp.allclose(x, y, 1e-4, 1e-5)), found, wanted)
            wrong += [] if all(jax.tree.leaves(near)) else [f"{name} check_vma={check}"]

    def drawn(seeds):  # each device draws its own texts of one prompt
        sample = {"length": 8, "sample": SAMPLE}
        return jaxgen.generate(params, CONFIG, TOKENS[:1], seeds[0], **sample)

    texts = jax.jit(jax.shard_map(drawn, mesh=mesh, in_specs=ROWS, out_specs=ROWS))(
        jax.random.split(KEY, 4)
    )
    wrong += [] if len({tuple(text) for text in texts.tolist()}) > 1 else ["texts"]
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
