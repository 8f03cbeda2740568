"""What breaks the promise of a private run, refused by name."""

from __future__ import annotations

from typing import Any

from jaxgen.errors import ConfigError

PRIVATE = ("causal", "chat", "pairs", "classes")  # objectives whose rows are of one record


def check_private(settings: Any) -> None:
    """Raise ConfigError for settings of a run whose promise of privacy would not hold."""
    train, name = settings.train, settings.objective.name
    if not train.privacy.on:
        return
    if name not in PRIVATE:
        raise ConfigError(
            f"train.privacy with objective.name={name} is not private: a row mixes several "
            f"records; take objective.name={', '.join(PRIVATE[:-1])} or {PRIVATE[-1]}"
        )
    if train.privacy.unit != "document" and name != "causal":
        raise ConfigError(
            f"train.privacy.unit={train.privacy.unit} needs objective.name=causal, not {name}; "
            f"leave it out, and the unit is a record"
        )
    if train.privacy.unit == "user" and settings.data.user is None:
        raise ConfigError(
            "train.privacy.unit=user needs data.user, which says whose a document is: file, "
            "folder, or a field of the records"
        )
    if settings.model.experts.number:
        raise ConfigError(
            f"train.privacy with model.experts.number={settings.model.experts.number} is not "
            f"private: a token's experts depend on the other rows; take a model without experts"
        )
    if settings.distill.teacher is not None:
        raise ConfigError(
            f"distill.teacher={settings.distill.teacher} with train.privacy is not built; train "
            f"the student on text alone"
        )
    for name in ("clip", "spike"):
        value = getattr(train, name)
        if value not in (None, type(train).__dataclass_fields__[name].default):
            raise ConfigError(
                f"train.{name}={value} has no effect with train.privacy, which clips rows to "
                f"train.privacy.clip and takes every step; leave it out"
            )
    if settings.mesh.form != "jit":
        raise ConfigError(f"train.privacy needs mesh.form=jit, not {settings.mesh.form}")
    if train.early_stopping is not None and not settings.data.valid_files:
        raise ConfigError(
            f"train.early_stopping={train.early_stopping} would end a private run by text of "
            f"the same people, which epsilon does not cover; give public data.valid_files, or "
            f"leave it out"
        )
