"""Every family and variant computes what transformers computes, through the whole import."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from safetensors.numpy import load_file, save_file

import jaxgen
from jaxgen.models.families.family import differences
from jaxgen.nn.stack import place

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return the maker of a case's folder, as transformers would have saved it."""
    home = tmp_path_factory.mktemp("hub")

    @cache
    def make(family, name):
        folder = home / f"{family}-{name}".replace(" ", "-")
        folder.mkdir()
        about = cases.about(golden(family), name)
        (folder / "config.json").write_text(json.dumps(about["config"]))
        weights = {n: cases.weight(n, tuple(shape)) for n, shape in about["shapes"].items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="module")
def loaded(hub):
    return cache(lambda family, name: jaxgen.load(hub(family, name)))


@cache
def golden(family):
    return cases.read(family)


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
    found = []
    for layer in range(config.layers):
        home, index = place(config, layer)
        tap = out.taps[f"{home}/out"]
        found.append(tap if index is None else tap[index])
    return np.asarray(out.logits), np.stack([*found[:-1], out.hidden])


def close(ours, want):
    np.testing.assert_allclose(ours, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "name"), cases.NAMES)
def test_logits_and_hidden_states_match(loaded, family, name):
    logits, hidden = run(*loaded(family, name))
    want, real = golden(family), np.asarray(inputs()[2]) == 1
    assert (
        np.abs(want[f"{name}/logits"]).max() > 0.5
    )  # not all small: the tolerance means something
    close(logits[real], want[f"{name}/logits"][real])
    close(hidden[:, real], want[f"{name}/hidden"][1:][:, real])


@pytest.mark.parametrize("family", cases.CASES)
def test_greedy_text_is_equal_token_for_token(loaded, family):
    name = list(cases.CASES[family])[-1]
    config, params = loaded(family, name)
    start = cases.TOKENS[:1, :8]
    ours = jaxgen.generate(params, config, start, jax.random.key(0), length=cases.NEW)
    assert ours[0].tolist() == golden(family)[f"{name}/greedy"].tolist()


@pytest.mark.parametrize(("family", "name"), cases.NAMES)
def test_a_round_trip_is_bit_exact(hub, loaded, family, name, tmp_path):
    folder = hub(family, name)
    config, params = loaded(family, name)
    jaxgen.save(tmp_path / "out", config, params, layout="hf", family=family)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    again, same = jaxgen.load(tmp_path / "out")
    assert differences(config, again) == []
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize(("kind", "name"), cases.RIGHT_NAMES)
def test_heads_and_encoder_decoders_match(hub, kind, name):
    name = f"{kind[1]} {name}"
    config, params = jaxgen.load(hub("right", name))
    want, mask = golden("right"), jnp.asarray(cases.MASK)
    pad = cases.about(want, name)["config"]["pad_token_id"]
    tokens, memory, segments = cases.source(pad), None, mask
    if config.topology == "encoder_decoder":
        memory = jaxgen.encode(params, config, tokens, segments=mask)
        tokens, segments = cases.TARGETS, None
    out = jaxgen.apply(
        params, config, tokens, segments=segments, memory=memory, taps=("layers/out",)
    )
    real = np.ones(tokens.shape, bool) if memory is not None else cases.MASK == 1
    logits, theirs = out.hidden if out.logits is None else out.logits, want[f"{name}/logits"]
    close(*((logits, theirs) if config.head == "classes" else (logits[real], theirs[real])))
    hidden = np.stack([*out.taps["layers/out"][:-1], out.hidden])
    close(hidden[:, real], want[f"{name}/hidden"][1:][:, real])
