"""Messages about our fields, said with the settings of a config.json that they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

NEAR = 0.5  # how like our field a key must be to be the one that is meant among several


def in_their_words(
    message: str,
    sources: Mapping[str, tuple[str, ...]],
    theirs: Mapping[str, Any],
    called: Mapping[str, str],
) -> str:
    """Return a message about fields of ours with the names and values that a file has for them.

    Args:
        message: with fields as "field=value", or alone where the name is no word of English.
        sources: our field, as "rope.theta", to the keys that it is read from.
        theirs: the settings, defaults filled in.
        called: keys to what the file calls them, where that is another name.
    """

    def said(match: re.Match[str]) -> str:
        field, more, value = match.groups()
        keys = [key for key in sources[field] if theirs.get(key) is not None] or sources[field]
        if (value is None and field.isalpha()) or not keys:
            return match.group()
        keys = get_close_matches(field.replace(".", "_"), keys, 1, NEAR) or keys
        names = [called.get(key, key) for key in keys]
        if value is None or more or len(keys) == 1:
            return f"{' or '.join(names)}{more}{value or ''}"
        pairs = (f"{name}={theirs.get(key)!r:.40}" for name, key in zip(names, keys, strict=True))
        return f"{' with '.join(pairs)} (here {value[1:]})"

    fields = "|".join(map(re.escape, sorted(sources, key=len, reverse=True)))
    return re.sub(rf"(?<![\w.])({fields})((?:\.\w+)*)(=[^\s,;:]+)?(?!\w)", said, message)
