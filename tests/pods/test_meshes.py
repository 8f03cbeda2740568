"""The law of meshes: however arrays are spread, the loss curve and the tokens are one device's."""

import itertools
import json
import os
from collections import Counter
from pathlib import Path

import fake_devices
import numpy as np
import pytest

AXES = ("data", "fsdp", "tensor", "sequence")
FORMS = ["data:8/pmap", "data:2,fsdp:2,tensor:2/shard_map", "data:2,fsdp:4/shard_map"]
SAMPLE = ["data:2,fsdp:2,tensor:2", "tensor:2,sequence:4", *FORMS[:2]]
# All 35 meshes take four minutes, so they are for the night.
EVERY = [
    ",".join(f"{axis}:{size}" for axis, size in zip(AXES, sizes, strict=True))
    for sizes in itertools.product((1, 2, 4, 8), repeat=4)
    if np.prod(sizes) <= 8
]
NAMES = EVERY + FORMS if os.environ.get("JAXGEN_NIGHTLY") else SAMPLE


@pytest.fixture(scope="session")
def curves() -> dict:
    program = Path(__file__).with_name("curves.py")
    return json.loads(fake_devices.run(program, 8, "", *NAMES).splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_mesh_and_form_gives_the_loss_curve_of_one_device(curves, name):
    single, spread = curves[""], curves[name]
    assert len(single["losses"]) == 20 and single["losses"][-1] < single["losses"][0] - 0.3
    np.testing.assert_allclose(spread["losses"], single["losses"], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_on_a_mesh_draws_the_tokens_of_one_device(curves, name):
    assert curves[name]["tokens"] == curves[""]["tokens"]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("pmap")])
def test_no_device_holds_a_matrix_whole_where_axes_can_share_it(curves, name):
    sizes = {axis: int(n) for axis, n in (w.split(":") for w in name.split("/")[0].split(","))}
    # Every matrix has D; all but none of them has an axis of tensor as well.
    share = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    assert curves[name]["largest"] == 1 / share


def steps_on(words, *chunks):
    """Return what `collectives.py` says of a step with so many chunks of logits, for each."""
    program = Path(__file__).with_name("collectives.py")
    said = fake_devices.run(program, 8, words, *map(str, chunks))
    return json.loads(said.splitlines()[-1])


def test_weights_are_gathered_one_layer_at_a_time_and_never_the_whole_stack():
    (step,) = steps_on("fsdp:4", 1)
    shapes = [tuple(shape) for shape in step["shapes"]["all-gather"]]
    # Layer by layer: a stack of both would lead with 2. Forward and again backward: what is
    # gathered is not kept from one to the other, or the whole model would be on every device.
    one = Counter(shape[shape[0] == 1 :] for shape in shapes if shape[-1] > 1 and len(shape) > 1)
    table, heads, feed = (
        {(64, 16): 2},
        {(16, 8, 2): 2 * 3, (8, 2, 16): 2},
        {(16, 32): 4, (32, 16): 2},
    )
    assert one == table | heads | feed


@pytest.mark.parametrize("words", ["data:2,fsdp:2", "fsdp:2,tensor:2"])
def test_the_output_tables_gradient_is_sent_once_whatever_the_chunks_of_logits(words):
    one, many = steps_on(words, 1, 8)
    assert many["sent"] <= 1.02 * one["sent"]
