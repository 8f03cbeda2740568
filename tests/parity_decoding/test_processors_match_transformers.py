"""Processed logits against golden outputs of transformers' LogitsProcessors."""

from functools import cache
from pathlib import Path

import decoding_cases as the
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.decoding.history import History

TIED = 1  # the logits of this number hold ties
SOURCED = ("source_penalty", "no_repeat_source")


@cache
def golden():
    return dict(np.load(Path(__file__).with_name("golden.npz")))


def test_the_golden_file_is_of_these_cases():
    assert len(golden()["outputs"]) == len(the.cases())
    for name, array in the.inputs().items():
        np.testing.assert_array_equal(array, golden()[name])


def made(name, settings):
    if name in SOURCED:
        lengths = np.full(the.B, the.S)
        return getattr(jaxgen, name)(**settings, source=golden()["source"], lengths=lengths)
    return getattr(jaxgen, name)(**settings)


@jax.jit
def process(sample, logits, tokens, length, made):
    return jax.vmap(lambda one: sample.process(one, History(made, tokens, length)))(logits)


def titles():
    return [f"{'+'.join(name for name, _ in one)}-{length}" for one, length in the.cases()]


@pytest.mark.parametrize("number", range(len(the.cases())), ids=titles())
def test_processed_logits_are_those_of_transformers(number):
    chain, length = the.cases()[number]
    sample = jaxgen.chain(*(made(name, settings) for name, settings in chain))
    drawn = length - the.prompt_length(length)
    # What lies past `length` is rubbish, as in a bucket; it must not matter.
    tokens = np.where(np.arange(the.S) < length, golden()["tokens"], 2)
    found = process(
        sample,
        golden()["logits"],
        jnp.asarray(tokens),
        jnp.full(the.B, length),
        jnp.full(the.B, drawn),
    )
    found, wanted = np.array(found), golden()["outputs"][number].copy()
    if any(name in ("top_p", "top_h") or settings.get("keep") for name, settings in chain):
        # torch's sort leaves open which of equal logits come first: compare what is kept by value.
        found[TIED], wanted[TIED] = np.sort(found[TIED]), np.sort(wanted[TIED])
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
