"""Meshes in words, what does not divide, and how logical axes are laid on mesh axes."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxgen.errors import ConfigError
from jaxgen.mesh import MeshSettings, constrain, gather, place, rules, shards
from jaxgen.mesh.settings import parse

SIZES = {"data": 2, "fsdp": 4, "tensor": 2, "sequence": 1}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dta:2", "did you mean 'data'"),
        ("data:2,data:4", "names data twice"),
        ("data:x", "write data:SIZE"),
        ("data", "write data:SIZE"),
        ("pipeline:2", "the axes are data, fsdp, expert, tensor, sequence"),
    ],
)
def test_a_mesh_in_words_is_refused_with_the_word(text, part):
    with pytest.raises(ConfigError, match=part):
        parse(text)


def test_a_mesh_in_words_names_its_axes_and_leaves_the_others_one():
    assert MeshSettings(**parse("fsdp:4,tensor:2")).sizes(8) == (1, 4, 1, 2, 1)
    assert MeshSettings(expert=4).sizes(8) == (2, 1, 4, 1, 1)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"data": 3}, "data=8 fits"),
        ({"fsdp": 3}, "must divide 8"),
        ({"data": 4, "fsdp": 4}, "= 16 devices, but there are 8; data=2 fits"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(settings, part):
    with pytest.raises(ConfigError, match=part):
        MeshSettings(**settings).sizes(8)


def test_pmap_is_refused_where_parameters_are_not_whole():
    with pytest.raises(ConfigError, match="form=pmap replicates"):
        MeshSettings(form="pmap", tensor=2)


def test_letters_are_laid_on_mesh_axes_once_and_only_where_they_divide():
    assert rules.stored("LDNH", (3, 16, 8, 4), SIZES) == P(None, ("fsdp",), ("tensor",), None)
    assert rules.stored("LD", (3, 16), SIZES) == P(None, None)
    assert rules.stored("LNH", (3, 8, 4), SIZES) == P(None, ("tensor",), None)
    assert rules.spec("BTD", (8, 5, 16), rules.USED, SIZES) == P(("data", "fsdp"), None, None)
    experts = SIZES | {"expert": 2}
    assert rules.stored("LEDF", (3, 8, 16, 8), experts) == P(
        None, ("expert",), ("fsdp",), ("tensor",)
    )
    assert rules.spec("BTD", (16, 5, 16), rules.USED, experts)[0] == ("data", "fsdp", "expert")
    assert rules.spec("BTV", (3, 5, 16), rules.USED, SIZES) == P(None, None, ("tensor",))
    assert rules.spec("EF", (4, 8), rules.USED, experts) == P(("expert",), ("tensor",))
    assert rules.spec("DE", (4, 8), rules.USED, experts) == P(None, None)


def test_without_a_mesh_constraints_add_nothing_to_the_program():
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "BTD") is x and gather(x, "DNH") is x and shards("BTV") == 1
    program = str(jax.make_jaxpr(lambda x: constrain(gather(x, "DNH"), "BTD") + 1)(x))
    assert "sharding" not in program and "custom" not in program


def test_the_environment_of_the_tests_has_one_device():
    assert "device_count" not in os.environ.get("XLA_FLAGS", "") and jax.device_count() == 1


@pytest.mark.parametrize(
    ("devices", "batch", "accumulate", "remedy"),
    [
        (32, 480, 40, "nearest that work: 1280, or train.accumulate=15"),
        (16, 48, 2, "nearest that work: 32 or 64, or train.accumulate=3"),
        (16, 49, 1, "nearest that work: 48 or 64$"),
    ],
)
def test_a_batch_that_does_not_divide_is_told_the_microbatches_that_keep_it(
    devices, batch, accumulate, remedy
):
    mesh = jax.sharding.AbstractMesh((devices, 1), ("data", "sequence"))
    with pytest.raises(ConfigError, match=remedy):
        place.check_batch(mesh, batch, accumulate, 8)
