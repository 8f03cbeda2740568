"""Make golden_dola.npz: what transformers 4.55's DoLa makes of random layers, row by row.

Run it where torch and transformers 4.55 are: `python tests/parity_decoding/make_golden_dola.py`.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.generation.utils import _dola_select_contrast

GOLDEN = Path(__file__).with_name("golden_dola.npz")


def main() -> None:
    random = np.random.default_rng(5)
    logits = (random.normal(size=(6, 23)) * 3).astype(np.float32)
    early = (random.normal(size=(4, 6, 23)) * 3).astype(np.float32)
    early[2, 3] = logits[3]
    arrays = {"logits": logits, "early": early}
    for number in (1, 4):
        rows = []
        for row in range(len(logits)):
            layers = {n: torch.from_numpy(early[n, row : row + 1]) for n in range(number)}
            last = torch.from_numpy(logits[row : row + 1].copy())
            rows.append(_dola_select_contrast(list(layers), layers, last).numpy()[0])
        arrays[f"outputs/{number}"] = np.stack(rows)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
