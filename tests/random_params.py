"""Parameters for tests that only need some: made by numpy, so that nothing is compiled for them."""

from math import prod

import jax.numpy as jnp
import numpy as np

from jaxgen import tree
from jaxgen.models import api


def random_params(config, seed=0):
    """Return normal weights of config.init_std; scales near 1 and biases near 0, none exactly.

    Zero biases and unit scales would hide a bias that is never added.
    """
    draw = np.random.default_rng(seed)

    def leaf(path, shape):
        values = draw.normal(size=prod(shape.shape)).reshape(shape.shape)
        if path.endswith(("scale", "bias")):
            centre = 1.0 if path.endswith("scale") and config.norm != "rms_offset" else 0.0
            return jnp.asarray(centre + 0.1 * values, shape.dtype)
        return jnp.asarray(config.init_std * values, shape.dtype)

    return tree.map_paths(leaf, api.abstract(config))
