"""A small recurrent model, in numpy, and the searches that are compared with transformers on it.

Its logits depend on the whole text, so a beam that is given another's memory is found out.
"""

import numpy as np

V, D, LENGTH = 13, 8, 9
STOP, PAD = 2, 0  # no text holds PAD: its logit is lowered
PROMPTS = np.asarray([[3, 4, 5], [7, 1, 9], [6, 6, 11], [12, 5, 8]])


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    shapes = {"embed": (V, D), "turn": (D, D), "out": (D, V)}
    found = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found["turn"] = found["turn"] * 0.6
    found["out"] = found["out"] * 1.2
    found["bias"] = np.where(np.arange(V) == PAD, -50.0, 0.0).astype(np.float32)
    return found


PLAIN = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    for beams in (2, 3, 5)
    for penalty in (0.0, 1.0, -0.7, 2.0)
    for early in (True, False, "never")
]
PLAIN += [
    {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False, "stops": [2, 5, 8]},
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": "never", "stops": []},
    {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "early_stopping": False},
    {"num_beams": 4, "min_new_tokens": 5, "bad_words_ids": [[4], [3, 7]], "early_stopping": True},
    {"num_beams": 1, "early_stopping": False},
]
GROUPS = [
    {
        "num_beams": beams,
        "num_beam_groups": groups,
        "diversity_penalty": amount,
        "early_stopping": early,
        "length_penalty": penalty,
    }
    for beams, groups, amount in ((4, 2, 0.5), (6, 3, 1.5), (3, 3, 4.0))
    for early in (True, False, "never")
    for penalty in (1.0, 0.0)
]
WORDS = [
    {
        "num_beams": beams,
        "force_words_ids": words,
        "early_stopping": early,
        "length_penalty": penalty,
    }
    for beams, words in (
        (4, [[4]]),
        (4, [[7, 9]]),
        (4, [[3, 8, 10], [6]]),
        (4, [[[3, 5], [3, 6, 1], [12]]]),
        (4, [[[4], [9, 10]], [8, 8], [11, 1]]),
        (4, [[3, 10], [3, 11], [10, 3, 4]]),
    )
    for early in (True, False, "never")
    for penalty in (1.0, 0.0)
]
WORDS += [
    {"num_beams": 4, "force_words_ids": [[9] * 6, [8, 7, 6, 5]], "early_stopping": False},
]
