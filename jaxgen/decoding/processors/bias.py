"""Processors that raise, lower or ban the last token of a sequence whose start has been drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.arrays import Axes
from jaxgen.decoding.history import History, Requires, last_tokens
from jaxgen.decoding.per_request import next_power_of_two
from jaxgen.decoding.processors.base import processor
from jaxgen.errors import ConfigError

ANY = -3  # in a start: any token, and none, so that starts of different widths share an array
Words = Sequence[Sequence[int]]
Biases = Mapping[Any, Any]  # of {(id, id, ...): number}


@processor()
class SequenceBias:
    """Add `bias` to the logit of `ends` where the history ends in `starts`.

    starts: [1 or B, N, W], padded with ANY on the left; ends: [1 or B, N]; bias: [1 or B, N].
    """

    name: ClassVar[str] = "sequence_bias"
    starts: Annotated[Any, Axes("integer", ("#B N W",))]
    ends: Annotated[Any, Axes("integer", ("#B N",))]
    bias: Annotated[Any, Axes("float", ("#B N",))]

    @property
    def requires(self) -> Requires:
        """Return "nothing" if all sequences are single tokens."""
        return "tokens" if self.starts.shape[-1] else "nothing"

    def __call__(
        self, logits: Float[Array, "B V"], history: History | None = None
    ) -> Float[Array, "B V"]:
        amount = jnp.asarray(self.bias, logits.dtype)
        if self.requires == "tokens":
            assert history is not None
            starts = jnp.asarray(self.starts)
            ending = last_tokens(history, starts.shape[-1])[:, None]
            matched = jnp.all((starts == ending) | (starts == ANY), axis=-1)
            amount = jnp.where(matched, amount, 0.0)
        ends = jnp.broadcast_to(jnp.asarray(self.ends), amount.shape)
        rows = jnp.arange(amount.shape[0])[:, None]
        blank = jnp.zeros((amount.shape[0], logits.shape[-1]), logits.dtype)
        return logits + blank.at[rows, ends].add(amount, mode="drop")


@arguments.checked
def sequence_bias(biases: Biases | Sequence[Biases]) -> SequenceBias:
    """Return a processor that biases the last token of each sequence whose start has been drawn.

    transformers' SequenceBiasLogitsProcessor.

    Args:
        biases: {(5,): -2.0, (3, 7): 4.0}, token ids to what is added, or a list of such, one for
            each request. Raises ConfigError for an empty sequence, a negative id or a NaN.

    >>> jaxgen.sequence_bias({(0,): -2.0})(jnp.array([[1.0, 1.0]]))
    Array([[-1.,  1.]], dtype=float32)
    """
    requests = [biases] if isinstance(biases, Mapping) else list(biases)
    if not requests:
        raise ConfigError(f"sequence_bias={biases!r} has no request; give a mapping")
    for sequence, amount in (pair for request in requests for pair in request.items()):
        if not _are_ids(sequence):
            raise ConfigError(f"sequence_bias: {sequence!r} must be token ids, at least one")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount != amount:
            raise ConfigError(f"sequence_bias: the bias {amount!r} of {sequence} is no number")
    return _pack(requests)


@arguments.checked(keep=at_least(0))
def bad_words(words: Words | Sequence[Words], *, keep: Sequence[int] = ()) -> SequenceBias:
    """Return a processor that never lets any of the token sequences `words` be completed.

    transformers' NoBadWordsLogitsProcessor.

    Args:
        words: [[5], [3, 7]], or a list of such, one for each request. Raises ConfigError for an
            empty sequence or a negative id.
        keep: ids that stay allowed even if they are among the words, such as the stop ids.

    >>> jaxgen.bad_words([[0]])(jnp.array([[1.0, 1.0]]))
    Array([[-inf,   1.]], dtype=float32)
    """
    listed = list(words)
    nested = bool(listed) and all(not _are_ids(word) for word in listed)
    requests: list[Any] = listed if nested else [listed]
    if not listed or not all(_are_ids(word) for request in requests for word in request):
        raise ConfigError(f"bad_words={words!r} must be lists of token ids, none empty")
    exempt = {(token,) for token in keep}
    banned = [{tuple(word): -np.inf for word in request} for request in requests]
    return _pack([{w: b for w, b in one.items() if w not in exempt} for one in banned])


def _are_ids(sequence: Any) -> bool:
    integers = (int, np.integer)
    return (
        isinstance(sequence, (list, tuple))
        and bool(sequence)
        and all(isinstance(x, integers) and not isinstance(x, bool) and x >= 0 for x in sequence)
    )


def _pack(requests: Sequence[Biases]) -> SequenceBias:
    number = next_power_of_two(max(len(request) for request in requests), 0)
    width = next_power_of_two(max((len(s) - 1 for r in requests for s in r), default=0), 0)
    starts = np.full((len(requests), number, width), ANY, np.int32)
    # An end past any vocabulary is dropped: the rows that only fill up change nothing.
    ends = np.full((len(requests), number), np.iinfo(np.int32).max, np.int32)
    bias = np.zeros((len(requests), number), np.float32)
    for row, request in enumerate(requests):
        for i, (sequence, amount) in enumerate(request.items()):
            start = sequence[:-1]
            starts[row, i, width - len(start) :] = start
            ends[row, i], bias[row, i] = sequence[-1], amount
    return SequenceBias(starts, ends, bias)
