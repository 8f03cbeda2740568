"""`verify invariance` proves a run's answers independent of their company, or names the layer."""

import os
import re

import forked
import jax.numpy as jnp
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tokens
from jaxgen.errors import ProofError
from jaxgen.nn.unroll import UNROLL_LIMITS
from jaxgen.ops import gates
from jaxgen.text.request import Generation
from jaxgen.verify import invariance

TINY = jaxgen.ModelConfig(vocab_size=259, context=24, layers=2, d_model=8, heads=2, init_std=0.5)


def saved(folder, config):
    tokenizer = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    jaxgen.save(folder, config, random_params(config), tokenizer=tokenizer)
    return folder


def test_a_sound_model_is_proven_in_every_company_and_on_more_devices(tmp_path):
    saved(tmp_path / "tiny", TINY.replace(layers=1, d_model=320))  # wide enough to be unrolled
    environment = dict(os.environ) | {"JAXGEN_CACHE": str(tmp_path / "cache")}
    words = ["verify", "invariance", "tiny", "--length", "4", "--devices", "2"]
    code, said = forked.program(["-m", "jaxgen", *words], environment, tmp_path).end()
    assert code == 0, said
    for company in (
        "in a batch of 8",
        "backwards",
        "beside a prompt of 20 and a text of 23",
        "on 2 devices",
    ):
        assert re.search(rf"{company} +the same tokens", said), said
    assert said.rstrip().endswith("greedy, drawn or by beams")


NIGHTLY = pytest.mark.skipif(not os.environ.get("JAXGEN_NIGHTLY"), reason="nightly")


@pytest.mark.parametrize("topology", ["decoder", pytest.param("encoder_decoder", marks=NIGHTLY)])
def test_a_layer_that_sees_its_neighbours_is_named(topology, tmp_path, monkeypatch):
    more = {"encoder_layers": 1, "layers": 1} if topology == "encoder_decoder" else {}
    config = TINY.replace(topology=topology, context=28, **more)  # compiled by nobody else
    right = gates.ACTIVATIONS["gelu_tanh"]

    def planted(x):
        y = right(x)
        return y + 0.5 * (jnp.mean(y, axis=0, keepdims=True) - y)  # nothing, for a request alone

    monkeypatch.setitem(gates.ACTIVATIONS, "gelu_tanh", planted)
    monkeypatch.setitem(UNROLL_LIMITS, "cpu", (0, 48))  # as of a model that is worth it
    monkeypatch.setattr(invariance, "MODES", {"greedy": Generation(temperature=0.0)})
    folder = saved(tmp_path / "tiny", config)
    if topology == "encoder_decoder":
        (folder / "generation_config.json").write_text('{"decoder_start_token_id": 1}')
    with pytest.raises(ProofError) as caught:
        invariance.invariance(folder, length=4)
    tower = "encoder/" if topology == "encoder_decoder" else ""
    told = str(caught.value)
    assert f"from {tower}layer 0 feed_out on it depends on its company" in told
    assert re.match(
        r"request \d, greedy: new token \d is \d+ alone and \d+ in a batch of 8; ", told
    )


def test_a_draw_that_knows_its_row_is_told_from_a_layer(tmp_path, monkeypatch):
    config = TINY.replace(context=26)
    monkeypatch.setattr(invariance, "MODES", {"drawn": Generation(temperature=1.0)})
    right = invariance.batch_decoding.rows_of

    def planted(requests, *rest):  # keys by the row of the batch, not by the request
        return right([one._replace(number=n) for n, one in enumerate(requests)], *rest)

    monkeypatch.setattr(invariance.batch_decoding, "rows_of", planted)
    with pytest.raises(ProofError, match=r"no layer .* differs|rounding sets in"):
        invariance.invariance(saved(tmp_path / "tiny", config), length=4)
