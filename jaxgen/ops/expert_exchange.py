"""Rows to the devices of their experts and back: an all-to-all that moves no row that nobody needs.

Each device has rows sorted by expert, of all experts; devices hold equally many experts, in order.
`lax.ragged_all_to_all` takes what of the rows goes where, one slice an expert and device, so rows
arrive sorted by expert as well. XLA has it for TPUs and GPUs, and none for CPUs.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.derivatives import linear_call

Axes = tuple[str, ...]  # of the mesh, that experts are spread over


class Exchange(NamedTuple):
    """The slices that this device sends, one for each expert, and those that it receives.

    Those received are in the order of devices, and of each device in that of the experts here.
    starts: where a slice begins before it is sent. sizes: its rows. landings: where it begins
    where it arrives.
    """

    starts: Int[Array, "E"]
    sizes: Int[Array, "E"]
    landings: Int[Array, "E"]
    received_starts: Int[Array, "E"]
    received_sizes: Int[Array, "E"]
    received_landings: Int[Array, "E"]

    def groups(self, devices: int) -> Int[Array, "E_here"]:
        """Return how many rows each expert here receives."""
        return jnp.sum(self.received_sizes.reshape(devices, -1), axis=0)


def plan(sizes: Int[Array, "E"], axes: Axes) -> Exchange:
    """Return the exchange of rows of which each device has so many for each expert."""
    devices, me = lax.axis_size(axes), lax.axis_index(axes)
    counts = lax.all_gather(sizes, axes)  # [device, E]: a number an expert, beside rows nothing
    starts = jnp.cumsum(counts, axis=1) - counts
    by_home = counts.reshape(devices, devices, -1)  # sender, receiver, expert there
    # A receiver has the rows of its first expert first, of sender after sender.
    order = by_home.transpose(1, 2, 0)
    flat = order.reshape(devices, -1)
    landings = (jnp.cumsum(flat, axis=1) - flat).reshape(order.shape)  # receiver, expert, sender
    return Exchange(
        starts[me],
        counts[me],
        landings[:, :, me].reshape(-1),
        landings[me].T.reshape(-1),
        by_home[:, me].reshape(-1),
        starts.reshape(by_home.shape)[:, me].reshape(-1),
    )


def send(rows: Float[Array, "R D"], to: Exchange, capacity: int, axes: Axes) -> Float[Array, "C D"]:
    """Return the rows for the experts here, sorted by expert; those behind them are 0.

    capacity: the most that can come, so that none is ever dropped.
    """
    there, back = partial(_send, capacity, axes), partial(_bring_back, rows.shape[0], axes)
    return linear_call(there, back, to, rows)


def bring_back(
    rows: Float[Array, "C D"], to: Exchange, count: int, axes: Axes
) -> Float[Array, "R D"]:
    """Return the rows that were sent, `count` of them, where they came from: `send` undone."""
    back, there = partial(_bring_back, count, axes), partial(_send, rows.shape[0], axes)
    return linear_call(back, there, to, rows)


def _send(capacity: int, axes: Axes, to: Exchange, rows: Array) -> Array:
    return _move(capacity, axes, rows, to.starts, to.sizes, to.landings, to.received_sizes)


def _bring_back(count: int, axes: Axes, to: Exchange, rows: Array) -> Array:
    slices = to.received_starts, to.received_sizes, to.received_landings
    return _move(count, axes, rows, *slices, to.sizes)


def _move(
    count: int, axes: Axes, rows: Array, starts: Array, sizes: Array, landings: Array, come: Array
) -> Array:
    zeros = jnp.zeros((count, *rows.shape[1:]), rows.dtype)
    return lax.ragged_all_to_all(rows, zeros, starts, sizes, landings, come, axis_name=axes)
