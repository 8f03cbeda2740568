"""Blenderbot 90M (Roller et al. 2020): BART whose decoder norms tokens before positions."""

from __future__ import annotations

from jaxgen.models.families import bart_kin, blenderbot
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="blenderbot-small",
    choices=bart_kin.CHOICES | {"positions": "learned", "embed.norm": "tokens"},
    defaults=bart_kin.DEFAULTS,
    rows=(*bart_kin.ROWS, *bart_kin.POSITIONS, *bart_kin.EMBED_NORMS),
    **bart_kin.SHARED | {"ignored": blenderbot.IGNORED},
    **bart_kin.classes("BlenderbotSmall"),
)
