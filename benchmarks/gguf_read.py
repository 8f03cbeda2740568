"""How long does a GGUF file take to be read, against transformers?

    python benchmarks/gguf_read.py smollm2 [--rounds 3]

Both sides make float32 arrays of every tensor: jaxgen.load, and from_pretrained(gguf_file=...) of
transformers, which reads through the gguf package. The file is in the page cache. Writes
results/gguf_read.json.
"""

from __future__ import annotations

import argparse
import os
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import sides

import jaxgen
from jaxgen.pretrained import sources

LEAST = 8.0  # times as fast as transformers


def main() -> None:
    """Time both sides in turn and write results/gguf_read.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a GGUF file, or smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    sides.on_cpu()
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    path = sources.local_path(given.model)

    def ours() -> None:
        jax.block_until_ready(jaxgen.load(path, dtype="float32")[1])

    def theirs() -> None:
        transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )

    warnings.simplefilter("ignore")
    ours()  # which imports what it needs, and fills the page cache
    seconds = sides.in_turn({"jaxgen": ours, "transformers": theirs}, given.rounds)
    found = {name: sides.figures(values) for name, values in seconds.items()}
    times = sides.ratio(seconds, "transformers", "jaxgen")
    about = {"file": path.name, "bytes": path.stat().st_size, "ratio": times, "least": LEAST}
    packages = ("jax", "numpy", "torch", "transformers", "gguf")
    sides.write("gguf_read", about | found | {"environment": sides.environment(packages)})
    print(f"{found['jaxgen']['median_seconds']} s, {times['of_medians']} times as fast")


if __name__ == "__main__":
    main()
