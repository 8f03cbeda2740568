"""Presets have the published numbers of parameters, and cost nothing until they are made."""

import resource
import time

import pytest

import jaxgen
from jaxgen import tree
from jaxgen.models.families import FAMILIES
from jaxgen.models.presets import PRESETS

# Millions of parameters, as transformers counts those of the published models.
MILLIONS = {
    "gpt2-124m": 124.44,
    "gpt2-1.5b": 1557.61,
    "llama-2-7b": 6738.42,
    "llama-2-70b": 68976.65,
    "llama-3.1-8b": 8030.26,
    "llama-3.1-405b": 405853.39,
    "llama-3.2-1b": 1235.81,
    "mistral-7b": 7241.73,
    "qwen2.5-0.5b": 494.03,
    "qwen2.5-7b": 7615.62,
    "qwen3-8b": 8190.74,
    "gemma-2b": 2506.17,
    "gemma-7b": 8537.68,
    "gemma-2-9b": 9241.71,
    "gemma-3-1b": 999.89,
    "smollm2-135m": 134.52,
    "smollm3-3b": 3075.10,
    "olmo-2-1b": 1484.92,
    "phi-2": 2779.68,
    "pythia-160m": 162.32,
    "t5-small": 60.51,
    "t5-11b": 11307.32,
    "bart-base": 139.42,
    "bart-large": 406.29,
}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items(), ids=MILLIONS)
def test_a_preset_has_the_published_number_of_parameters(name, millions):
    count = tree.count(jaxgen.abstract(jaxgen.preset(name))) / 1e6
    assert count == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("name", ["llama-70b", "gpt3-175b"])
def test_the_shapes_of_a_huge_model_need_neither_memory_nor_time(name):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    shapes = jaxgen.abstract(jaxgen.preset(name))
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert tree.count(shapes) > 7e10 - 1e9


def writes(family, config):
    try:
        return bool(family.write(config)["model_type"])
    except ValueError:
        return False


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_exported_by_some_family(name):
    config = jaxgen.preset(name)
    assert any(writes(family, config) for family in FAMILIES.values())


@pytest.mark.parametrize(
    "preset, key", [("gpt2-124m", "attn_pdrop"), ("bart-base", "attention_dropout")]
)
def test_attention_dropout_is_read_and_written(preset, key):
    family = FAMILIES[preset.split("-")[0]]
    config = jaxgen.preset(preset, dropout=0.3, attention_dropout=0.2)
    theirs = family.write(config)
    assert theirs[key] == 0.2
    read = family.read(theirs)
    assert (read.dropout, read.attention_dropout) == (0.3, 0.2)
    assert family.read(theirs | {key: 0.3}).attention_dropout is None
