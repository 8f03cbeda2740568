"""Dataclasses as pytree nodes: what JAX's own registration takes for equal is told apart."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

import jaxgen
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Scaled:
    value: Any
    mode: str = field(default="a", metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class Shifted:
    value: Any
    mode: str = field(default="a", metadata={"static": True})


def test_classes_with_the_same_fields_differ_in_structure_and_so_in_program():
    assert jax.tree.structure(Scaled(1.0)) != jax.tree.structure(Shifted(1.0))
    program = jax.jit(lambda node: 2 * node.value if type(node) is Scaled else node.value + 5)
    assert [float(program(kind(1.0))) for kind in (Scaled, Shifted, Scaled)] == [2, 6, 2]


def test_jax_itself_still_takes_such_classes_for_equal():
    """The reason for ours: once this fails on every supported JAX, JAX's own will do."""
    one, other = (
        jax.tree_util.register_dataclass(dataclass(frozen=True)(type(name, (), {})))
        for name in ("One", "Other")
    )
    assert jax.tree.structure(one()) == jax.tree.structure(other())


def test_a_node_is_mapped_rebuilt_and_named_by_its_fields():
    assert jax.tree.map(lambda x: x + 1, Scaled(1, "b")) == Scaled(2, "b")
    assert jax.tree.structure(Scaled(1, "a")) != jax.tree.structure(Scaled(1, "b"))
    ((path, leaf),) = jax.tree_util.tree_leaves_with_path(Scaled(3))
    assert jax.tree_util.keystr(path) == ".value" and leaf == 3


def test_no_class_of_the_package_is_registered_by_jax():
    paths = Path(jaxgen.__file__).parent.rglob("*.py")
    assert not [p for p in paths if "@jax.tree_util.register_dataclass" in p.read_text()]
