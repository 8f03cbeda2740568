"""mBART (Liu et al. 2020): BART of many languages, normalised before, and once more at the end."""

from __future__ import annotations

from jaxgen.models.families import bart
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="mbart",
    choices={**bart.FAMILY.choices, "norm_at": "pre"},
    defaults=bart.DEFAULTS,
    rows=(*bart.FAMILY.rows, *bart.FINAL_NORMS),
    **bart.SHARED | {"only": bart.PRE_NORM},
    **bart.classes("MBart", heads=True),
)
