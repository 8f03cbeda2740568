"""The examples in docstrings of the public face do what they show."""

import doctest

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxgen
from jaxgen.cli import notebook
from jaxgen.decoding.history import History
from jaxgen.text.session import Session

# Names that an example may use without importing them.
KNOWN = {"jax": jax, "jnp": jnp, "optax": optax, "jaxgen": jaxgen, "History": History}

FACE = {name: getattr(jaxgen, name) for name in jaxgen.__all__}
FACE |= {"Session": Session, "train": notebook.train}  # a package that can be called
FOUND = [
    test
    for name, thing in FACE.items()
    for test in doctest.DocTestFinder().find(thing, name, module=False, globs=KNOWN)
    if test.examples
]


@pytest.mark.parametrize("test", FOUND, ids=lambda test: test.name)
def test_an_example_shows_what_happens(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)


def test_every_public_name_has_an_example():
    assert FACE.keys() == {test.name.partition(".")[0] for test in FOUND}
