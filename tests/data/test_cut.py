"""Rows cut from documents laid end to end, against looking each token up by itself."""

import numpy as np
import pytest
from data_makers import shard_of

from jaxgen.data.pack import cut


def plain_cut(shard, starts, ends, context):
    """Return what `cut` does, token by token."""
    tokens, offsets = shard.tokens, shard.offsets.astype(int)
    count, rows = len(tokens), []

    def document(place):
        number = max(i for i, begin in enumerate(offsets[:-1]) if begin <= place % count)
        return number + place // count * shard.documents

    for start, end in zip(starts, ends, strict=True):
        seen, position, segment = None, 0, 0
        for place in range(start, start + context):
            now, then = document(place), document(place + 1)
            fresh = now != seen
            seen, segment, position = now, segment + fresh, 0 if fresh else position + 1
            inside, weight = place + 1 < end, now == then and place + 1 < end
            rows.append([
                int(tokens[place % count]) * inside, int(tokens[(place + 1) % count]) * weight,
                weight, segment * inside, position * inside,
            ])  # fmt: skip
    table = np.asarray(rows).reshape(len(starts), context, 5)
    return dict(zip(("tokens", "targets", "weights", "segments", "positions"),
                    np.moveaxis(table, 2, 0), strict=True))  # fmt: skip


@pytest.mark.parametrize("lengths", [[5], [3, 1, 9, 2, 6], [2, 0, 4, 0, 0, 3], [0, 7, 1, 0]])
def test_rows_equal_those_cut_token_by_token(tmp_path, lengths):
    shard = shard_of(tmp_path, lengths)
    starts = np.arange(2 * sum(lengths) + 3)
    for context in (1, 4, 13):
        ends = np.minimum(starts + context + 2, starts.max())
        made, plain = cut(shard, starts, ends, context), plain_cut(shard, starts, ends, context)
        for name, values in plain.items():
            np.testing.assert_array_equal(made[name], values, err_msg=f"{name}, {context}")
