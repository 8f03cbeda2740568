"""What breaks the promise of a private run, or a federated one, refused by name."""

from __future__ import annotations

from typing import Any

from jaxgen.errors import ConfigError
from jaxgen.settings import changed

PRIVATE = ("causal", "chat", "pairs", "classes")  # objectives whose rows are of one record


def check_federated(settings: Any) -> None:
    """Raise ConfigError for settings of a federated run that can't be."""
    train = settings.train
    if not train.federated.on:
        return
    clients = f"train.federated.clients={train.federated.clients}"
    if settings.data.user is None:
        raise ConfigError(
            f"{clients} needs data.user, which says whose a document is: file, folder, or a field "
            f"of the records"
        )
    for wrong, name, fix in (
        (
            settings.objective.name != "causal",
            f"objective.name={settings.objective.name}",
            "causal",
        ),
        (settings.mesh.form != "jit", f"mesh.form={settings.mesh.form}", "jit"),
        (
            bool(settings.model.experts.number),
            f"model.experts.number={settings.model.experts.number}",
            "a model without experts",
        ),
        (
            settings.distill.teacher is not None,
            f"distill.teacher={settings.distill.teacher}",
            "none",
        ),
        (
            train.privacy.on and train.privacy.unit != "user",
            f"train.privacy.unit={train.privacy.unit}",
            "user",
        ),
        (train.privacy.method == "ghost", "train.privacy.method=ghost", "auto"),
        (
            train.clip is not None and "clip" in changed(train),
            f"train.clip={train.clip}",
            "train.privacy.clip, which clips each client",
        ),
    ):
        if wrong:
            raise ConfigError(f"{clients} does not go with {name}; take {fix}")


def check_clients(mesh: Any, train: Any) -> None:
    """Raise ConfigError for clients of a round that do not divide over the mesh."""
    clients = train.federated.clients
    each = mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1) * train.accumulate
    if clients % each:
        raise ConfigError(
            f"train.federated.clients={clients} is not a multiple of mesh.data * mesh.fsdp * "
            f"train.accumulate = {each}; give {each * max(clients // each, 1)}, or a smaller mesh"
        )


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
        if value is not None and name in changed(train):
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
