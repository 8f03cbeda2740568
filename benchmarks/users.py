"""What do adapters of as many users as rows cost a batch that decodes, and what memory?

    python benchmarks/users.py                          SmolLM2-135M, 8 users of rank 8, minutes
    python benchmarks/users.py --targets "*/q" "*/v"    adapters as PEFT trains them by default
    python benchmarks/users.py --layers 2 --rounds 1    a smoke test, seconds

Weights and adapters are drawn at random; the shapes are SmolLM2's. Sides, in turn in one process:
the model alone, and the same rows each with an adapter of its own. At most 15 % longer is the
bound for adapters of the default targets. The memory is that of a bank of 1,000 users.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import sides

import jaxgen
from jaxgen.adapters import bank as banks
from jaxgen.models import serving
from jaxgen.ops.cpu import allocator

BOUND, MANY = 1.15, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=["all-linear"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    allocator.tune()
    config = jaxgen.preset("smollm2-135m").replace(layers=given.layers)
    form = (given.rank, given.targets, given.dtype)
    params = serving.ready(jaxgen.init(config, jax.random.key(0)), config)
    bank = banks.empty(config, given.users, *form)
    rng = np.random.default_rng(0)
    bank = jax.tree.map(lambda x: 0.01 * rng.normal(size=x.shape).astype(x.dtype), bank)
    slots = np.arange(1, given.users + 1, dtype=np.int32)
    prompt = rng.integers(0, config.V, (given.users, 16))

    def call(params):
        found = jaxgen.generate(params, config, prompt, jax.random.key(0), length=given.length)
        return jax.block_until_ready(found)

    around = banks.around(params, bank, slots, config)
    calls = {"alone": lambda: call(params), "adapters": lambda: call(around)}
    firsts = {name: sides.once(of)[1] for name, of in calls.items()}
    seconds = sides.in_turn(calls, given.rounds)
    for name, of in seconds.items():
        figures = sides.figures(of)
        rate = given.users * given.length / figures["median_seconds"]
        print(f"{name:9} {rate:8.1f} tokens/s  {figures}  first call {firsts[name]:.1f} s")
    found = sides.ratio(seconds, "adapters", "alone")
    print(f"adapters / alone: {found}; bound {BOUND}")
    many = jax.eval_shape(lambda: banks.empty(config, MANY, *form))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(many))
    print(f"{MANY} users of rank {given.rank} in {given.dtype}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
