"""A token table whose rows get something added where they are looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, Int

from jaxgen.errors import ConfigError
from jaxgen.ops.contract import lookup
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Perturbed:
    """A table [V, D] with what is added to the vector of each token of a batch.

    rows: [..., T, D], of the tokens; source: [B, S, D], of what an encoder reads of the same table.
    The output layer reads `table` alone.
    """

    table: Any
    rows: Any
    source: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the table."""
        return self.table.shape

    def lookup(self, ids: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
        """Return the rows of ids and what is added; ConfigError for ids of another shape."""
        width = self.rows.shape[-1]
        if ids.size * width != self.rows.size or ids.shape[-1] != self.rows.shape[-2]:
            raise ConfigError(
                f"the loss looks up tokens of shape {list(ids.shape)}, but batch['tokens'] has "
                f"{list(self.rows.shape[:-1])}; a perturbation needs a loss that reads those"
            )
        x = lookup(self.table, ids, dtype=dtype)
        return x + self.rows.reshape(x.shape).astype(x.dtype)


def of_source(table: Any) -> Any:
    """Return the table that an encoder reads, where it shares that of the decoder."""
    return Perturbed(table.table, table.source) if isinstance(table, Perturbed) else table


def unperturbed(table: Any) -> Any:
    """Return the table itself."""
    return table.table if isinstance(table, Perturbed) else table
