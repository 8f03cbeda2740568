"""Blenderbot 90M (Roller et al. 2020): BART whose decoder norms tokens before positions."""

from __future__ import annotations

from jaxgen.models.families import bart, blenderbot
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="blenderbot-small",
    choices=bart.CHOICES | {"positions": "learned", "embed.norm": "tokens"},
    defaults=bart.DEFAULTS,
    rows=(*bart.ROWS, *bart.POSITIONS, *bart.EMBED_NORMS),
    **bart.SHARED | {"ignored": blenderbot.IGNORED},
    **bart.classes("BlenderbotSmall"),
)
