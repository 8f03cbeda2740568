"""The place of the largest number equals jnp.argmax's."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops.cpu.argmax import argmax, two_passes

ROWS = {
    "equals": [[1.0, 3.0, 3.0, 2.0], [0.0, -0.0, -1.0, 0.0]],
    "nothing finite": [[-np.inf] * 4, [np.inf, 1.0, np.inf, np.inf]],
    "not a number": [[1.0, np.nan, 5.0, np.nan], [np.nan] * 4],
}


@pytest.mark.parametrize("form", [argmax, two_passes])
@pytest.mark.parametrize("name", ROWS)
def test_the_first_of_equals_and_nan_before_all(form, name):
    x = jnp.asarray(ROWS[name])
    np.testing.assert_array_equal(form(x), jnp.argmax(x, axis=-1))
    np.testing.assert_array_equal(form(x[0]), jnp.argmax(x[0]))
    assert argmax(x).dtype == jnp.int32
