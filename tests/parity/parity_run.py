"""What we compute of a decoder's case: shared by the tests and the table of differences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
from safetensors.numpy import save_file

import jaxgen
from jaxgen.nn.stack import taps_path


def write_folder(folder, about):
    """Write the folder of a case as transformers would have saved it; return it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about["config"]))
    weights = {n: cases.weight(n, tuple(shape)) for n, shape in about["shapes"].items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def inputs():
    """Return (tokens, positions, segments) with the padding of the second row as a segment 0."""
    segments = np.ones_like(cases.TOKENS)
    segments[1, : cases.PADDED] = 0
    positions = np.clip(segments.cumsum(-1) - 1, 0, None)
    return cases.TOKENS, jnp.asarray(positions), jnp.asarray(segments)


def run(config, params):
    """Return (logits, hidden states after each layer [L, B, T, D], the last one normalised)."""
    tokens, positions, segments = inputs()
    out = jaxgen.apply(
        params, config, tokens, positions=positions, segments=segments, taps=("*/out",)
    )
    return np.asarray(out.logits), states(config, out)


def states(config, out):
    """Return the hidden states after each layer [L, B, T, D], the last one normalised.

    Of several streams they are all in one row, and not normalised, as transformers has them.
    """
    found = []
    for layer in range(config.layers):
        home, index = taps_path(config, layer)
        tap = out.taps[f"{home}/out"]
        found.append(tap if index is None else tap[index])
    if config.residual.streams > 1:
        return np.stack([state.reshape(*state.shape[:2], -1) for state in found])
    return np.stack([*found[:-1], out.hidden])


def differences(folder, want):
    """Return the largest differences to transformers' outputs of a case: logits, hidden states.

    Also whether greedy text is equal, token for token. The last states may not be among those.
    """
    config, params = jaxgen.load(folder)
    logits, hidden = run(config, params)
    real = np.asarray(inputs()[2]) == 1
    start = cases.TOKENS[:1, :8]
    text = jaxgen.generate(params, config, start, jax.random.key(0), length=cases.NEW)
    wanted = want["hidden"][1:]
    return (
        float(np.abs(logits - want["logits"])[real].max()),
        float(np.abs(hidden[: len(wanted)] - wanted)[:, real].max()),
        text[0].tolist() == want["greedy"].tolist(),
    )
