"""Wrong calls of the package's functions die in the suite."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
import shape_checks
from jaxtyping import Array, Float
from shape_checks import checked

import jaxgen.decoding.history

ONES = jnp.ones((2, 3))


@checked
def double(x: Float[Array, "B T"], y: "Float[Array, 'B T'] | None" = None) -> Float[Array, "B T"]:
    return x[:1] if y is None else x + y


@checked
@dataclasses.dataclass(frozen=True)
class Pair:
    name: str
    x: Float[Array, "B"]
    y: Float[Array, "B"]


@checked
def count(start: int, stop: int):
    yield from range(start, stop)


@checked
def zeros(length: int, made: int) -> Float[Array, "{length}"]:
    return jnp.zeros(made)


def adder(number):
    @checked
    def add(x: int, more: "int" = number) -> int:
        return x + number if more else str(x)

    return add


def test_right_calls_return_what_the_function_returns():
    np.testing.assert_array_equal(double(ONES, ONES), 2 * ONES)
    assert Pair("a", ONES[0], ONES[1]).name == "a" and list(count(1, stop=4)) == [1, 2, 3]
    assert zeros(3, 3).shape == (3,)
    assert [adder(number)(1) for number in (1, 2, 3)] == [2, 3, 4]
    assert adder(5).__name__ == "add" and adder(5).__wrapped__(1) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: double(ONES[0]),
        lambda: double(ONES.astype(int), ONES),
        lambda: double(ONES, ONES.T),
        lambda: double(ONES),  # it returns another shape
        lambda: Pair("a", ONES[0], ONES[:, 0]),
        lambda: Pair(1, ONES[0], ONES[0]),
        lambda: list(count("1", 2)),
        lambda: adder(2)("1"),
        lambda: adder(2)(1, 0),  # it returns a string
        lambda: zeros(3, 4),
        lambda: jaxgen.decoding.history.count_tokens(ONES, ONES > 0, 4),  # the package's own
        lambda: jaxgen.decoding.history.valid_mask("all"),
    ],
)
def test_wrong_calls_die(wrong):
    with pytest.raises(Exception, match=r"violates type hint|[Tt]ype-check error"):
        wrong()


def test_threads_that_make_a_check_at_once_all_call_it(monkeypatch):
    @checked
    def half(x: Float[Array, "B T"]) -> Float[Array, "B T"]:
        return x / 2

    make = shape_checks._checks
    monkeypatch.setattr(shape_checks, "_checks", lambda fn: (time.sleep(0.05), make(fn))[1])
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(half, [ONES] * 4))) == 4
