"""How long do saving and restoring take, and how long does training stand still for a save?

    python benchmarks/checkpoint.py --size tiny                  a smoke test
    python benchmarks/checkpoint.py --size 6x384 --cases save    one case

The state of training is parameters and both moments of AdamW, float32, random. Ours goes through
`jaxgen.store.Checkpoints`, which writes in the background and keeps a sha256 of every file and of
every array; the same bytes go through torch.save and torch.load, and through
torch.distributed.checkpoint in a single process, waited for and in the background. Training stands
still while the call that begins a save has not returned. The step after it finds its memory taken
(our save still reads it) and needs other: a step that does nothing but rewrite the state is timed
before and right after, so that this is no hidden cost. The limit is plain writing, fsync included,
in the same run. Figures: results/checkpoint.json; cases of other runs stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sides

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "context": 64, "layers": 2, "d_model": 64, "heads": 4},
    "6x384": {"vocab_size": 8192, "context": 256, "layers": 6, "d_model": 384, "heads": 6},
    "gpt2-124m": {"vocab_size": 50257, "context": 1024, "layers": 12, "d_model": 768, "heads": 12},
}
OURS = "jaxgen"
CASES = ("save", "restore")
PACKAGES = ("jax", "jaxlib", "orbax-checkpoint", "tensorstore", "numpy", "torch")
BLOCK = 1 << 24  # bytes written at once to find out how fast writing is


def state_of(size: str) -> Any:
    """Return a state of training whose every number is random."""
    import jax
    import optax

    import jaxgen
    from jaxgen.train import state

    config = jaxgen.ModelConfig(**SIZES[size])
    make = lambda key: state.train_state(jaxgen.init(config, key), optax.adamw(1e-3), key)  # noqa: E731
    shapes = jax.eval_shape(make, jax.random.key(0))
    drawn = np.random.default_rng(0)

    def random(leaf: Any) -> Any:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(1)
        return jax.numpy.array(drawn.random(leaf.shape, np.float32).astype(leaf.dtype))

    return jax.tree.map(random, shapes)


class Ours:
    """Our store, and a step that rewrites the state; `seconds` holds what each part took."""

    def __init__(self, home: Path, state: Any) -> None:
        import jax

        from jaxgen.store import Checkpoints

        self.home, self.state, self.number = home, state, 0
        plain = {"params": state.params, "optimizer": state.optimizer}
        self.moved = jax.tree.map(lambda leaf: leaf + 0, plain)
        self.open = lambda verify: Checkpoints(
            home, keep_last=1, keep_best=0, fingerprints={}, verify=verify
        )
        self.store = self.open("full")
        self.rewrite = jax.jit(
            lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0
        )
        self.seconds: dict[str, list[float]] = {}

    def step(self) -> None:
        """Rewrite the state in place, or elsewhere if its memory is taken."""
        import jax

        self.moved = jax.block_until_ready(self.rewrite(self.moved))

    def save(self) -> None:
        """Save what a step has just made; another step follows before the save is on disk."""
        os.sync()  # what others have left to be written is no part of this
        self.step()
        self._timed("step", self.step)
        self.number += 1
        began = time.perf_counter()
        self._timed("call", lambda: self.store.save(self.number, self.moved, {}, metric=None))
        self._timed("step after", self.step)
        self.store.wait()
        self.seconds.setdefault("whole", []).append(time.perf_counter() - began)

    def keep(self) -> None:
        """Leave the state on disk, for `restore`."""
        self.store.save(1, self.state, {}, metric=None)
        self.store.wait()

    def restore(self, verify: str) -> None:
        """Read it back, into memory of its own."""
        import jax

        def read() -> None:
            found = self.open(verify).restore(self.state)
            assert found is not None
            jax.block_until_ready(found.tree)

        self._timed(verify, read)

    def _timed(self, name: str, call: Callable[[], Any]) -> None:
        self.seconds.setdefault(name, []).append(sides.once(call)[1])


def timed(
    ours: Ours, theirs: Theirs, calls: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of all parts of the calls, made in turn after one of each to warm up."""
    for call in calls.values():
        call()
    ours.seconds.clear()
    theirs.seconds.clear()
    sides.in_turn(calls, rounds)
    return {f"{OURS} {name}": of for name, of in ours.seconds.items()} | theirs.seconds


def tensors(state: Any) -> dict[str, Any]:
    """Return the same bytes as torch tensors, by path."""
    import torch

    from jaxgen.store import pytree_io

    _, arrays = pytree_io.to_host(state)
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


class Theirs:
    """The ways of torch, each into a new place; `seconds` holds what each took."""

    def __init__(self, home: Path, flat: dict[str, Any]) -> None:
        self.home, self.flat = home, flat
        self.seconds: dict[str, list[float]] = {}

    def save(self, way: str) -> None:
        """Save by one of WAYS, and time the call and the whole."""
        path = self.home / way
        self._clear(path)
        os.sync()
        began = time.perf_counter()
        wait = WAYS[way](self.flat, path)
        self.seconds.setdefault(f"{way} call", []).append(time.perf_counter() - began)
        wait()
        self.seconds.setdefault(f"{way} whole", []).append(time.perf_counter() - began)

    def restore(self, way: str) -> None:
        """Read it back, into memory of its own."""
        import torch
        import torch.distributed.checkpoint as dcp

        began = time.perf_counter()
        if way == "torch.save":
            found = torch.load(self.home / way, weights_only=True)
        else:
            found = {name: torch.empty_like(x) for name, x in self.flat.items()}
            dcp.load(found, checkpoint_id=self.home / way, no_dist=True)  # pyright: ignore
        self.seconds.setdefault(way, []).append(time.perf_counter() - began)
        assert all(torch.equal(found[name], x) for name, x in list(self.flat.items())[-2:])

    @staticmethod
    def _clear(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _plain(flat: dict[str, Any], path: Path) -> Callable[[], Any]:
    import torch

    torch.save(flat, path)
    return lambda: None


def _distributed(flat: dict[str, Any], path: Path) -> Callable[[], Any]:
    import torch.distributed.checkpoint as dcp

    dcp.save(flat, checkpoint_id=path, no_dist=True)  # pyright: ignore
    return lambda: None


def _background(flat: dict[str, Any], path: Path) -> Callable[[], Any]:
    import torch.distributed.checkpoint as dcp

    return dcp.async_save(flat, checkpoint_id=path, no_dist=True).result  # pyright: ignore


# What each begins returns what waits for its end.
WAYS: dict[str, Callable[[dict[str, Any], Path], Callable[[], Any]]] = {
    "torch.save": _plain,
    "torch distributed": _distributed,
    "torch distributed, in the background": _background,
}


def saving(home: Path, state: Any, rounds: int) -> dict[str, Any]:
    """Return the figures of saving."""
    ours, theirs = Ours(home / "ours", state), Theirs(home, tensors(state))
    calls: dict[str, Callable[[], None]] = {OURS: ours.save}
    calls |= {way: lambda way=way: theirs.save(way) for way in WAYS}
    every = timed(ours, theirs, calls, rounds)
    middle = {name: statistics.median(of) for name, of in every.items()}
    extra = middle[f"{OURS} step after"] - middle[f"{OURS} step"]
    whole = middle[f"{OURS} whole"]
    return {
        "seconds": {name: sides.figures(of) for name, of in every.items()},
        "stands_still": {
            side: round(middle[f"{side} call"] / middle[f"{side} whole"], 4) for side in calls
        },
        "with_the_next_step": round((middle[f"{OURS} call"] + max(extra, 0)) / whole, 4),
        "times_as_short": {way: sides.ratio(every, f"{way} call", f"{OURS} call") for way in WAYS},
        "whole_times_as_fast": {
            way: sides.ratio(every, f"{way} whole", f"{OURS} whole") for way in WAYS
        },
    }


def restoring(home: Path, state: Any, rounds: int) -> dict[str, Any]:
    """Return the figures of restoring, from the page cache."""
    ours, theirs = Ours(home / "ours", state), Theirs(home, tensors(state))
    ours.keep()
    ways = list(WAYS)[:2]
    for way in ways:
        theirs.save(way)
    theirs.seconds.clear()
    calls: dict[str, Callable[[], None]] = {
        verify: lambda verify=verify: ours.restore(verify) for verify in ("full", "off")
    }
    calls |= {way: lambda way=way: theirs.restore(way) for way in ways}
    every = timed(ours, theirs, calls, rounds)
    return {
        "seconds": {name: sides.figures(of) for name, of in every.items()},
        "times_as_fast": {
            f"{name} against {way}": sides.ratio(every, way, name)
            for name in (f"{OURS} full", f"{OURS} off")
            for way in ways
        },
    }


def writing(home: Path, nbytes: int) -> float:
    """Return the seconds that plain writing of so many bytes takes until they are on the disk."""
    block = np.random.default_rng(1).bytes(min(BLOCK, nbytes))
    path, left = home / "plain", nbytes
    os.sync()
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(block[: min(left, len(block))])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="gpt2-124m")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path, help="write there, to find out about another disk")
    given = parser.parse_args()
    sides.on_cpu()
    from jaxgen import tree
    from jaxgen.ops.cpu import allocator

    allocator.tune()  # as every verb of the command line does
    threads = sides.threads()
    path = sides.RESULTS / "checkpoint.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    state = state_of(given.size)
    nbytes = tree.nbytes({"params": state.params}) * 3
    cases = dict(known.get(given.size, {}))
    with tempfile.TemporaryDirectory(dir=given.home) as temporary:
        for case in given.cases:
            home = Path(temporary) / case
            home.mkdir()
            found = {"save": saving, "restore": restoring}[case](home, state, given.rounds)
            if case == "save":
                plain, whole = writing(home, nbytes), found["seconds"][f"{OURS} whole"]
                found["limit"] = {
                    "plain_write_seconds": round(plain, 3),
                    "share": round(plain / whole["median_seconds"], 3),
                }
                told = f"training stands still for {found['stands_still'][OURS]:.1%} of a save"
                print(f"{told}; {found['limit']['share']:.0%} of the disk's rate", file=sys.stderr)
            else:
                print(f"restore: {found['times_as_fast']}", file=sys.stderr)
            about = {"bytes": nbytes, "threads": threads}
            cases[case] = found | about | {"environment": sides.environment(PACKAGES)}
            shutil.rmtree(home)
    known[given.size] = {case: cases[case] for case in CASES if case in cases}
    sides.write("checkpoint", {size: known[size] for size in SIZES if size in known})


if __name__ == "__main__":
    main()
