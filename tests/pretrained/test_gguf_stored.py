"""Q8_0 of a GGUF file, left as it is stored, gives the texts of the numbers that it stands for."""

import jax
import numpy as np
import pytest
from test_gguf_written import model, of_letters

import jaxgen
from jaxgen.errors import ConfigError
from jaxgen.models import serving
from jaxgen.ops.int8 import Int8
from jaxgen.ops.int8_blocks import Int8Blocks


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    home = tmp_path_factory.mktemp("q8") / "m.gguf"
    config, params = model("llama", vocab_size=320, initializer_range=0.3)
    jaxgen.save(home, config, params, layout="gguf", dtype="q8_0", tokenizer=of_letters())
    return home


def leaves(params):
    found = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int8 | Int8Blocks))
    return [leaf for leaf in found if isinstance(leaf, Int8 | Int8Blocks)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_are_those_of_the_plain_numbers_in_a_quarter_of_the_memory(tmp_path, name):
    config, params = model(name)
    jaxgen.save(tmp_path / "m.gguf", config, params, layout="gguf", dtype="q8_0")
    plain, stored = (jaxgen.load(tmp_path / "m.gguf", weights=w) for w in ("plain", "stored"))
    assert plain[0] == stored[0]
    assert len(leaves(stored[1])) >= 7 and not leaves(plain[1])
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(one[1])) for one in (plain, stored)]
    assert sizes[1] < 0.36 * sizes[0]
    ids = np.arange(24).reshape(2, 12)
    wanted = jaxgen.apply(plain[1], plain[0], ids).logits
    found = jaxgen.apply(stored[1], stored[0], ids).logits
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    again = serving.ready(serving.ready(stored[1], config), config, weights="int8")
    assert leaves(again)


STRATEGIES = {
    "sampling": {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    "beams": {"beams": 3},
    "contrastive": {"contrastive": 0.6, "top_k": 4},
    "lookup": {"temperature": 0.0, "lookup": 3},
}


@pytest.mark.parametrize("settings", STRATEGIES.values(), ids=STRATEGIES)
def test_every_strategy_makes_the_text_of_the_plain_numbers(path, settings):
    texts = [
        jaxgen.open(path, weights=weights).generate("abcab", max_new_tokens=8, **settings)
        for weights in ("plain", "stored")
    ]
    assert texts[0] == texts[1] and texts[0]


def test_stored_weights_are_refused_where_there_are_none(tmp_path):
    config, params = model("llama")
    jaxgen.save(tmp_path / "hub", config, params, layout="hf")
    with pytest.raises(ConfigError, match=r"there are none .F32.; drop it"):
        jaxgen.load(tmp_path / "hub", weights="stored")
    jaxgen.save(tmp_path / "ours", config, params)
    with pytest.raises(ConfigError, match=r"no weight of .*ours is quantised"):
        jaxgen.load(tmp_path / "ours", weights="stored")
