"""How long does a training step take, against PyTorch with the same weights?

    python benchmarks/train_step.py --shape tiny                 a smoke test
    python benchmarks/train_step.py --shape gpt2-6x384
    python benchmarks/train_step.py --shape llama-8x512 --sides jaxgen torch.compile
    python benchmarks/train_step.py --dtype bfloat16             products in bfloat16 on all sides
    python benchmarks/train_step.py --rounds 0                   only fills the caches of compilers

Each side is a process of its own that owns all cores, or the GPU, while it is its turn: ours; a
plain torch model (`peers.py`) with scaled_dot_product_attention, eager and compiled; and, where our
export has a family for it, `transformers`. Torch has fused AdamW. All begin with the same weights
and batch, clip the gradient's norm and decay the weights alike; logits are compared before anything
is timed, losses after every step. Figures: results/train_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sides

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "context": 64, "layers": 2, "d_model": 64, "heads": 4, "batch": 4},
    "gpt2-6x384": {
        "vocab_size": 8192, "context": 256, "layers": 6, "d_model": 384, "heads": 6, "batch": 8,
    },
    "llama-8x512": {
        "vocab_size": 8192, "context": 512, "layers": 8, "d_model": 512, "heads": 8, "kv_heads": 2,
        "d_ff": 1408, "norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none",
        "batch": 4,
    },
    "encoder-decoder-4x384": {
        "topology": "encoder_decoder", "vocab_size": 8192, "context": 128, "layers": 4,
        "d_model": 384, "heads": 6, "batch": 16,
    },
    # An encoder-decoder that transformers has too, BART's; its output bias is trained here and
    # constant there, so losses part by about 1e-3 after the first step.
    "bart-4x384": {
        "topology": "encoder_decoder", "vocab_size": 8192, "context": 128, "layers": 4,
        "d_model": 384, "heads": 6, "feed": "gelu", "norm_at": "post", "embed_norm": "norm",
        "position_offset": 2, "output_bias": "bias", "batch": 16,
    },
    "gpt2-124m": {
        "vocab_size": 50257, "context": 512, "layers": 12, "d_model": 768, "heads": 12, "batch": 2,
    },
    # For a GPU of 80 GB or more.
    "gpt2-124m-32x1024": {
        "vocab_size": 50257, "context": 1024, "layers": 12, "d_model": 768, "heads": 12,
        "batch": 32,
    },
    "llama-1b-4x2048": {
        "vocab_size": 32000, "context": 2048, "layers": 22, "d_model": 2048, "heads": 32,
        "kv_heads": 4, "d_ff": 5632, "norm": "rms", "positions": "rope", "feed": "swiglu",
        "biases": "none", "batch": 4,
    },
}  # fmt: skip
SIDES = ("jaxgen", "torch eager", "torch.compile", "transformers")
# Who has no such model.
LACKING = {
    "encoder-decoder-4x384": ("transformers",),
    "bart-4x384": ("torch eager", "torch.compile"),
}
APART = {"float32": 1e-3, "bfloat16": 0.1}  # how far logits may lie from ours
RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def config_of(shape: str, dtype: str) -> tuple[Any, int]:
    """Return (config, rows of a batch)."""
    import jaxgen

    sizes = dict(SHAPES[shape])
    batch = sizes.pop("batch")
    return jaxgen.ModelConfig(**sizes, compute_dtype=dtype), batch


def batch_of(config: Any, rows: int) -> dict[str, np.ndarray]:
    """Return random tokens, their successors as targets, and a source for an encoder."""
    drawn = np.random.default_rng(0)
    tokens = drawn.integers(0, config.V, (rows, config.context + 1)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    if config.topology == "encoder_decoder":
        source = drawn.integers(0, config.V, (rows, config.context)).astype(np.int32)
        batch["source"] = source
    return batch


def params_of(config: Any) -> Any:
    """Return the weights that all sides begin with."""
    import jax

    import jaxgen

    return jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))


def ours(shape: str, dtype: str, home: Path) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return (one step, facts); the weights and logits go into `home` for the others."""
    import jax
    import optax

    import jaxgen
    from jaxgen import tree
    from jaxgen.ops.cpu import allocator
    from jaxgen.pretrained import hub_write
    from jaxgen.pretrained.generation_config import GenerationConfig
    from jaxgen.train import flops, partitioner, state

    allocator.tune()  # as every verb of the command line does
    config, rows = config_of(shape, dtype)
    batch, params = batch_of(config, rows), params_of(config)
    few = {name: x[:2] for name, x in batch.items()}
    memory = jaxgen.encode(params, config, few["source"]) if "source" in few else None
    logits = jaxgen.apply(params, config, few["tokens"], memory=memory).logits
    np.save(home / "logits.npy", np.asarray(logits))
    np.savez(home / "weights.npz", **{p: np.asarray(x) for p, x in tree.flatten(params).items()})
    if "transformers" not in LACKING.get(shape, ()):
        (home / "hub").mkdir()
        hub_write.write_hub(
            home / "hub", config, params, tokenizer=None, generation_config=GenerationConfig()
        )
    first, last = BETAS
    rule = optax.adamw(RATE, b1=first, b2=last, weight_decay=DECAY)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), rule)
    step = partial(jaxgen.train_step, config=config, optimizer=optimizer, loss=jaxgen.causal_loss)
    held = {"state": state.train_state(params, optimizer, jax.random.key(1))}
    del params, logits
    jitted = partitioner.make_step("jit", step, None, None, rows)
    program, compiling = sides.once(jitted.lower(held["state"], batch).compile)

    def one() -> float:
        held["state"], metrics = program(held["state"], batch)
        return float(metrics["loss"])

    tokens = rows * config.context
    work = flops.per_token(config) * tokens
    facts = {"compile_seconds": round(compiling, 2), "flops_per_step": work, "tokens": tokens}
    return one, facts | {"device": {"gpu": "cuda"}.get(jax.default_backend(), "cpu")}


def theirs(
    shape: str, dtype: str, home: Path, *, form: str
) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return (one step, facts) of a torch model with our weights: eager, compiled or the hub's."""
    import peers
    import torch

    from jaxgen import tree

    config, rows = config_of(shape, dtype)
    where = peers.device()
    batch = {k: torch.from_numpy(v).long().to(where) for k, v in batch_of(config, rows).items()}
    if form == "hub":
        model = peers.from_hub(home / "hub")
    else:
        with np.load(home / "weights.npz") as stored:
            model = peers.load(config, tree.unflatten(dict(stored)))
    model.to(where)
    inputs = [batch[name] for name in ("tokens", "source") if name in batch]
    cast = partial(torch.autocast, where, torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.no_grad(), cast():
        found = model(*(x[:2] for x in inputs)).float().cpu().numpy()
    apart = float(np.abs(found - np.load(home / "logits.npy")).max())
    assert apart < APART[dtype], f"logits are {apart} apart"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True
    )

    def loss(targets, *inputs):
        with cast():
            logits = model(*inputs)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    loss = torch.compile(loss) if form == "compiled" else loss

    def one() -> float:
        value = loss(batch["targets"], *inputs)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return value.item()

    return one, {"logits_apart": apart, "device": where}


MAKERS = {
    "jaxgen": ours,
    "torch eager": partial(theirs, form="eager"),
    "torch.compile": partial(theirs, form="compiled"),
    "transformers": partial(theirs, form="hub"),
}


def serve(side: str, shape: str, dtype: str, home: Path) -> None:
    """Be one side: make it, then take a step and tell its seconds and loss for every line read."""
    tell = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sides.threads() if side != "jaxgen" else None
    one, facts = MAKERS[side](shape, dtype, home)
    value, first = sides.once(one)
    time.sleep(sides.PAUSE)
    one()
    print(json.dumps(facts | {"first_step_seconds": round(first, 3), "loss": value}), file=tell)
    tell.flush()
    for line in sys.stdin:
        if line.strip() == "peak":
            answer: dict[str, Any] = {"peak_mib": round(peak(side, facts["device"]) / 2**20)}
        else:
            value, seconds = sides.once(one)
            answer = {"seconds": seconds, "loss": value}
        print(json.dumps(answer), file=tell, flush=True)


def peak(side: str, device: str) -> float:
    """Return the most bytes that a side has held: of the process, or of a GPU's memory."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    if side == "jaxgen":
        import jax

        return float(jax.devices()[0].memory_stats()["peak_bytes_in_use"])
    import torch

    return float(torch.cuda.max_memory_allocated())


class Side:
    """A process that takes training steps when asked."""

    def __init__(self, side: str, shape: str, dtype: str, home: Path) -> None:
        words = [sys.executable, __file__, "--shape", shape, "--dtype", dtype]
        words += ["--serve", side, "--home", str(home)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.facts = self._read()
        self.losses: list[float] = []

    def ask(self, question: str) -> dict[str, Any]:
        """Return the answer to a line."""
        assert self.process.stdin
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._read()

    def step(self) -> None:
        """Take a step."""
        self.losses.append(self.ask("step")["loss"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(shape: str, dtype: str, names: list[str], rounds: int) -> dict[str, Any]:
    """Return all figures of a shape; none for no rounds, after every side has compiled."""
    import limits  # with JAX, which a side of torch need not load

    from jaxgen.profile import chips

    with tempfile.TemporaryDirectory() as home:
        running: dict[str, Side] = {}
        try:
            for name in names:  # ours first: it writes the weights
                running[name] = Side(name, shape, dtype, Path(home))
            sides.one_device({name: side.facts["device"] for name, side in running.items()})
            if not rounds:
                return {}
            most = limits.apart(dtype)
            steps = {name: side.step for name, side in running.items()}
            seconds = sides.in_turn(steps, rounds, pause=sides.PAUSE)
            again = limits.apart(dtype)
            peaks = {name: side.ask("peak")["peak_mib"] for name, side in running.items()}
        finally:
            for side in running.values():
                side.close()
    facts = running["jaxgen"].facts
    kept = "JAX_COMPILATION_CACHE_DIR" in os.environ
    limit = {name: max(value, again[name]) for name, value in most.items()}
    found = {
        "shape": SHAPES[shape],
        "dtype": dtype,
        "limits": limits.told(limit),
        "flops_per_step": facts["flops_per_step"],
        # torch keeps what it compiled by itself: only the first run on a machine is a cold one.
        "compiled_programs": "may come from a cache" if kept else "compiled by jax in this run",
        "environment": sides.environment(PACKAGES),
    }
    kind = found["environment"]["devices"]["kind"]
    chip = chips.of_device(kind)
    for name, side in running.items():
        times = sides.figures(seconds[name])
        rate = facts["flops_per_step"] / times["median_seconds"]
        found[name] = times | side.facts | {
            "tokens_per_second": round(facts["tokens"] / times["median_seconds"]),
            "share_of_limit": round(rate / limit["flops"], 3),
            "peak_mib": peaks[name],
            "losses": [round(value, 5) for value in side.losses[:3]],
        }  # fmt: skip
        if chip is not None and dtype == "bfloat16":
            found[name]["mfu"] = round(rate / chip.flops, 3)  # of the data sheet's peak
        if name != "jaxgen":
            found[f"jaxgen is faster than {name}"] = sides.ratio(seconds, name, "jaxgen")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-6x384")
    parser.add_argument("--dtype", choices=APART, default="float32", help="of products")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="all that have the model")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.shape, given.dtype, given.home)
        return
    names = given.sides or [n for n in SIDES if n not in LACKING.get(given.shape, ())]
    began = time.perf_counter()
    found = measure(given.shape, given.dtype, names, given.rounds)
    if not found:
        return
    label = given.shape if given.dtype == "float32" else f"{given.shape}, {given.dtype}"
    for name in names[1:]:
        key = f"jaxgen is faster than {name}"
        print(f"{label}: {found[key]['of_medians']} times as fast as {name}", file=sys.stderr)
    path = sides.RESULTS / "train_step.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[label] = found | {"took_seconds": round(time.perf_counter() - began)}
    labels = [f"{shape}{more}" for more in ("", ", bfloat16") for shape in SHAPES]
    sides.write("train_step", {name: known[name] for name in labels if name in known})


if __name__ == "__main__":
    main()
