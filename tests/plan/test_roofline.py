"""What a program's operations take at best is counted as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from jaxgen.plan import report, roofline
from jaxgen.profile import program
from jaxgen.profile.chips import Chip
from jaxgen.profile.program import Operation

CHIP = Chip("a chip", flops=1e6, memory=1e9, bandwidth=1e6, links=1.0)


def work(f, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    text = jax.jit(f).lower(*arguments).compile().as_text()
    return roofline.work(program.parse(text), CHIP)


def test_a_product_in_a_loop_counts_once_a_turn_and_is_bound_by_what_takes_longer():
    def looped(x, w):
        return jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x)

    first = work(looped, (64, 64), (64, 64))[0]
    assert first.times == 7 and first.bound == "products"
    assert first.seconds == pytest.approx(7 * 2 * 64**3 / CHIP.flops)
    first = work(looped, (1, 64), (64, 64))[0]
    assert first.times == 7 and first.bound == "bandwidth"
    assert first.seconds == pytest.approx(7 * 4 * (64 * 64 + 2 * 64) / CHIP.bandwidth)


def test_what_moves_only_memory_is_bound_by_it_and_the_longest_comes_first():
    found = work(lambda x, y: (jnp.sin(x), y @ y), (512, 512), (128, 128))
    assert [one.bound for one in found[:2]] == ["products", "bandwidth"]
    assert found[1].seconds == pytest.approx(2 * 4 * 512**2 / CHIP.bandwidth)
    assert found == sorted(found, key=lambda one: -one.seconds)


def test_loops_in_loops_multiply():
    def nested(x, w):
        inner = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x)  # noqa: E731
        return jax.lax.fori_loop(0, 5, lambda _, x: inner(x) + 1.0, x)

    (first, *_) = work(nested, (64, 64), (64, 64))
    assert first.times == 15


def test_operations_of_layers_in_line_are_shown_as_one():
    def operation(path, line="nn/feed.py:43"):
        return Operation(1.0, "f32", 1.0, path, "", line)

    def one(name, times, seconds, path):
        return roofline.Work(name, times, seconds, "products", operation(path))

    work = [
        one("dot.9", 1, 0.5, "layers/feed"),
        one("copy.3", 2, 0.3, ""),
        one("add.1", 1, 0.25, "z"),
    ]
    work += [one("dot.7", 1, 0.125, "layers/feed")]
    rows = dict(report._work(work))
    assert rows["  operations at the roofline"].startswith("1.18 s")
    assert rows["    625 ms"] == "2 x layers/feed, nn/feed.py:43"
    assert rows["    300 ms"] == "2 x copy, nn/feed.py:43"
    assert rows["    number of them"] == "5"
