"""What do adapters of as many users as rows cost a batch that decodes, and what memory?

    python benchmarks/users.py                          SmolLM2-135M, 8 users of rank 8, minutes
    python benchmarks/users.py --compute float32        the model's arithmetic; else bfloat16
    python benchmarks/users.py --targets "*/q" "*/v"    adapters as PEFT trains them by default
    python benchmarks/users.py --targets "*/q" "*/v" --resident 1000     holds 1,000 of them, 3 GB
    python benchmarks/users.py --layers 2 --rounds 1    a smoke test, seconds

Weights and adapters are drawn at random; the shapes are SmolLM2's. Sides, in turn in one process:
the model alone, and the same rows each with an adapter of its own. At most 15 % longer is the
bound. With --resident all of those users are written into one bank, batches of some of them are
answered while others come and go, each row is compared with the same row alone, and what was
compiled meanwhile is counted.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import sides

import jaxgen
from jaxgen.adapters import bank as banks
from jaxgen.adapters.adapter import Adapter, abstract, plan
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.models import serving
from jaxgen.ops.cpu import allocator

BOUND, MANY = 1.15, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=["all-linear"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compute", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--resident", type=int, default=0, help="users in one bank")
    given = parser.parse_args()
    allocator.tune()
    sizes = {"layers": given.layers, "compute_dtype": given.compute}
    config = jaxgen.preset("smollm2-135m").replace(**sizes)
    form = (given.rank, given.targets, given.dtype)
    params = serving.ready(jaxgen.init(config, jax.random.key(0)), config)
    if given.resident:
        reside(given, config, params, form)
        return
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


def adapter_of(user: int, form: Adapter, config: jaxgen.ModelConfig) -> Adapter:
    """Return the adapter of a user, drawn at random."""
    rng = np.random.default_rng(user)
    drawn = lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
    return replace(form, params=jax.tree.map(drawn, abstract(form, config)))


def reside(given: argparse.Namespace, config: jaxgen.ModelConfig, params: Any, form: Any) -> None:
    """Hold as many adapters at once, and answer batches of some while users come and go."""
    settings = AdapterSettings(kind="lora", rank=given.rank, targets=tuple(given.targets))
    shape = plan(settings, config)
    begin = time.perf_counter()
    bank = banks.empty(config, given.resident, *form)
    for user in range(1, given.resident + 1):
        bank = banks.write(bank, config, user, adapter_of(user, shape, config), f"user {user}")
    size = sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(bank)))
    print(f"{given.resident} users: {size / 1e9:.2f} GB in {time.perf_counter() - begin:.0f} s")
    rng = np.random.default_rng(0)
    prompt = np.tile(rng.integers(0, config.V, 16), (given.users, 1))  # adapters alone differ

    def answer(bank: banks.Bank, slots: Any, prompt: Any) -> np.ndarray:
        around = banks.around(params, bank, np.asarray(slots, np.int32), config)
        key = jax.random.key(0)
        return np.asarray(jaxgen.generate(around, config, prompt, key, length=given.length))

    compiled: list[str] = []
    answer(bank, np.arange(1, given.users + 1), prompt)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    for turn in range(3):
        slots = rng.choice(given.resident, given.users, replace=False) + 1
        found = answer(bank, slots, prompt)
        different = len({row.tobytes() for row in found})
        leaves = int(slots[0])  # one leaves, and another takes the slot
        bank = banks.write(bank, config, leaves, None, "nobody")
        bank = banks.write(bank, config, leaves, adapter_of(2000 + turn, shape, config), "new")
        print(f"users {slots.tolist()}: {different} different answers to one prompt")
    found = answer(bank, slots, prompt)
    print(f"compiled while users came and went: {len(compiled)}")
    alone = [answer(bank, slots[i : i + 1], prompt[i : i + 1])[0] for i in range(given.users)]
    equal = sum(np.array_equal(*pair) for pair in zip(found, alone, strict=True))
    print(f"rows that are token for token what their user gets alone: {equal} of {given.users}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of the process: {peak:.2f} GB")


if __name__ == "__main__":
    main()
