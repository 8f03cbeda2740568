"""Images stand in the places of a decoder's prompts, in order; what does not fit is one line."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen.errors import ConfigError

STEM = jaxgen.Stem(
    kind="patches", channels=3, size=4, patch=2, first="learned", bias="none", norm="norm"
)
VISION = jaxgen.Vision(token=9, stem=STEM, layers=2, d_model=8, heads=2, d_ff=12)
SIZES = {"vocab_size": 11, "context": 16, "layers": 1, "d_model": 12, "heads": 2, "d_ff": 16}
TEXT = jaxgen.ModelConfig(**SIZES, positions="rope", embed=jaxgen.Embed(scale="root"))
CONFIG = TEXT.replace(vision=VISION)
PARAMS = random_params(CONFIG)
IMAGES = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 3)).astype(np.float32)
ROWS = np.array([
    [1, 9, 9, 9, 9, 2, 9, 9, 9, 9, 3],
    [4, 5, 9, 9, 9, 9, 6, 7, 1, 1, 1],
    [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3],
])  # fmt: skip


def test_vectors_of_images_stand_in_their_places_in_order():
    seen = jaxgen.apply(PARAMS, CONFIG, ROWS[:1], media=IMAGES[:1], taps=("embedded",))
    x = seen.taps["embedded"][0]
    p, own = PARAMS["vision"], CONFIG.encoder()
    for number, begin in enumerate((1, 6)):
        tower = {name: p[name] for name in ("stem", "layers")} | {"final_norm": _unit(8)}
        taps = jaxgen.encode(tower, own, media=IMAGES[0, number][None], taps=("layers/out",)).taps
        state = taps["layers/out"][-1, 0, 1:]
        wide = jax.nn.gelu(state @ p["project_in"] + p["project_in_bias"], approximate=False)
        wanted = wide @ p["project_out"] + p["project_out_bias"]
        np.testing.assert_allclose(x[begin : begin + 4], wanted, atol=1e-5)
    text = jaxgen.apply(PARAMS, CONFIG, ROWS[:1], taps=("embedded",)).taps["embedded"][0]
    np.testing.assert_array_equal(x[::5], text[::5])


def _unit(width):
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def test_a_row_is_the_same_alone_and_beside_rows_with_fewer_images_and_none():
    media = np.concatenate([IMAGES, np.full((1, 2, 4, 4, 3), 7, np.float32)])
    together = jaxgen.apply(PARAMS, CONFIG, ROWS, media=media).logits
    for row, count in ((1, 1), (2, 0)):
        one = media[row : row + 1, :count] if count else None
        alone = jaxgen.apply(PARAMS, CONFIG, ROWS[row : row + 1], media=one).logits[0]
        np.testing.assert_allclose(together[row], alone, atol=1e-5)
    first, cache = jaxgen.prefill(PARAMS, CONFIG, ROWS, np.array([11, 8, 11]), 12, media=media)
    last = jaxgen.apply(PARAMS, CONFIG, np.asarray(first)[:, None], cache=cache).logits[:, 0]
    np.testing.assert_allclose(last[0], together[0, -1], atol=1e-5)
    np.testing.assert_allclose(last[1], together[1, 7], atol=1e-5)


def test_a_text_without_images_is_computed_by_the_program_of_a_model_without_vision():
    text = {name: part for name, part in PARAMS.items() if name != "vision"}
    programs = [
        jax.jit(partial(jaxgen.apply, config=config)).lower(params, tokens=ROWS[2:]).as_text()
        for config, params in ((TEXT, text), (CONFIG, PARAMS))
    ]
    assert "stablehlo" in programs[0] and programs[0] == programs[1]


def test_gradients_reach_the_tower():
    def loss(params):
        return jnp.sum(jaxgen.apply(params, CONFIG, ROWS[:1], media=IMAGES[:1]).logits ** 2)

    slopes = jax.tree.leaves(jax.grad(loss)(PARAMS)["vision"])
    assert all(np.abs(leaf).max() > 0 for leaf in slopes)


CALLS = {
    r"media is \[1, 2, 4, 4, 1\]": (CONFIG, {"tokens": ROWS[:1], "media": IMAGES[:1, ..., :1]}),
    "holds 2 images a row, of 4 vectors each, but the rows have .4. places": (
        CONFIG, {"tokens": ROWS[1:2], "media": IMAGES[:1]}),
    r"the rows have \[0\] places of vision.token=9": (
        CONFIG, {"tokens": ROWS[2:], "media": IMAGES[:1]}),
    "with vision=None": (TEXT, {"tokens": ROWS[:1], "media": IMAGES[:1]}),
    "the tokens with their places are missing": (
        CONFIG, {"inputs_embeds": np.zeros((1, 3, 12), np.float32), "media": IMAGES[:1]}),
}  # fmt: skip


@pytest.mark.parametrize("reason", CALLS)
def test_images_that_do_not_fit_are_one_line(reason):
    config, given = CALLS[reason]
    params = {name: part for name, part in PARAMS.items() if config is CONFIG or name != "vision"}
    with pytest.raises(ConfigError, match=reason):
        jaxgen.apply(params, config, **given)


def test_settings_without_a_place_are_named():
    for reason, made in {
        "vision.token=11 is no id": lambda: CONFIG.replace(vision=_with(token=11)),
        "positions=learned": lambda: CONFIG.replace(positions="learned"),
        "vision.stem.kind=log_mel": lambda: _with(stem=jaxgen.Stem()),
        "vision.kept=patches has no effect": lambda: _with(stem=_stem(first="none")),
        "of vision: d_model=8": lambda: CONFIG.replace(vision=_with(heads=3)),
        "stem.norm=norm has no effect": lambda: jaxgen.Stem(norm="norm"),
    }.items():
        with pytest.raises(ConfigError, match=reason):
            made()


def _with(**changes):
    return jaxgen.Vision(**{**vars(VISION), **changes})


def _stem(**changes):
    return jaxgen.Stem(**{**vars(STEM), **changes})
