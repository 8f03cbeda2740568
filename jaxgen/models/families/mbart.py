"""mBART (Liu et al. 2020): BART of many languages, normalised before, and once more at the end."""

from __future__ import annotations

from jaxgen.models.families import bart, bart_kin
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="mbart",
    choices={**bart.FAMILY.choices, "norm_at": "pre"},
    defaults=bart_kin.DEFAULTS,
    rows=(*bart.FAMILY.rows, *bart_kin.FINAL_NORMS),
    **bart_kin.SHARED | {"only": bart_kin.PRE_NORM},
    **bart_kin.classes("MBart", heads=True),
)
