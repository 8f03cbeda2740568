"""Models and settings on which contrastive search is compared with transformers 4.

Weights are not kept: both sides draw them with numpy (`random_params`); the maker exports them in
the Hugging Face layout, which `tests/parity` compares with transformers in its own right.
"""

import numpy as np

V, LENGTH, STOP, PAD, START = 53, 10, 5, 0, 4
SHAPE = {"vocab_size": V, "context": 40, "layers": 2, "d_model": 16, "heads": 4, "init_std": 0.4}
MODELS = {
    "gpt2": SHAPE,
    "bart": SHAPE
    | {"topology": "encoder_decoder", "encoder_layers": 2, "norm_at": "post", "feed": "gelu"}
    | {"embed_norm": "norm", "position_offset": 2, "output_bias": "bias"},
}
CASES = [
    {"top_k": 4, "contrastive": 0.6},
    {"top_k": 7, "contrastive": 0.9},
    {"top_k": 2, "contrastive": 0.2, "repetition_penalty": 1.4, "no_repeat_ngram": 2},
    {"top_k": 5, "contrastive": 0.5, "min_new_tokens": 6, "stop_ids": tuple(range(6, 50, 4))},
]


def sources():
    """Prompts, or what an encoder reads, of several lengths."""
    random = np.random.default_rng(3)
    return [random.integers(1, V, size).tolist() for size in (4, 9, 6)]
