"""Workarounds for XLA:CPU, each with the plain twin that other platforms run.

`enabled(name)` says, while a program is traced, whether it takes the fast form of that name:
on a CPU, unless it is `disabled`. `benchmarks/cpu_twins.py` measures what each one gains.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

from jaxgen.mesh import place

TWINS = {
    "allocator": "freed memory is kept for reuse, not given back to the system",
    "argmax": "the maximum first, then its index, instead of both at once",
    "bfloat16": "matmuls of bfloat16 have two rows at least and float32 sums",
    "blocked_attention": "attention by blocks of queries; scores are never held whole",
    "compile_options": "XLA options of a training step",
    "few_rows": "the matmul of a few rows has the weight on the left, widened block by block",
    "fused_weights": "decoding multiplies with weights of the same input at once",
    "grouped_matmul": "experts multiply their own rows, block by block, not all rows",
    "one_row": "float32 is made of a narrower weight within the matmul of one row",
    "pause": "a training step begins after XLA has freed the last one's temporaries",
    "radix_select": "a top-p or top-k cutoff is found bit by bit instead of by a sort",
    "threefry": "random bits are computed by index, fused with what reads them",
    "transposed_weights": "decoding reads weights with their output axes first",
    "unrolled_layers": "layers are unrolled instead of scanned",
    "weight_gradients": "weight gradients have their narrower factor transposed by a copy",
}
# Part of the key of jit's caches: a program compiled with one choice never serves another.
_disabled = jax.make_user_context(frozenset())


def enabled(twin: str, platform: str | None = None) -> bool:
    """Return whether the code being traced takes the fast form of this name for XLA:CPU.

    Args:
        twin: one of `TWINS`.
        platform: "cpu", "gpu" or "tpu"; None: that of the traced code.
    """
    assert twin in TWINS, twin
    return twin not in _disabled.value and (platform or place.platform()) == "cpu"


def disabled(*twins: str) -> AbstractContextManager:
    """Return a context in which this thread traces the plain forms of `twins`, by default of all.

    Programs compiled outside of it are not used in it, nor the other way round. "allocator",
    "compile_options" and "pause", which are in no program, are read when they act.
    """
    if unknown := set(twins) - set(TWINS):
        raise KeyError(f"{sorted(unknown)} are none of {sorted(TWINS)}")
    return _disabled(_disabled.value | frozenset(twins or TWINS))
