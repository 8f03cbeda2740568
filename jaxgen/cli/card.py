"""`jaxgen card`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import paths
from jaxgen.errors import ConfigError

Run = Annotated[str, Parameter(help="a run folder, or its name in runs/")]
Licence = Annotated[str | None, Parameter(name="--license", help="of the weights, as apache-2.0")]
DataLicence = Annotated[str | None, Parameter(name="--data-license", help="of the training text")]
Reviewed = Annotated[
    tuple[str, ...],
    Parameter(
        help="ITEM=NOTE: an item of the checklist that was looked at, by whom and what was found; "
        "may be repeated",
        consume_multiple=False,
    ),
]
Out = Annotated[str | None, Parameter(help="file to write; README.md in the run by default")]


def card(
    run: Run,
    /,
    *,
    licence: Licence = None,
    data_licence: DataLicence = None,
    reviewed: Reviewed = (),
    out: Out = None,
) -> None:
    """Write a run's model card: measured values, data, licences, limits, ethics checklist.

    Figures come from the run's own files, with the name of each; what is not known
    or was not reviewed is listed as such.

    For example:
        jaxgen card quickstart --license apache-2.0
        jaxgen card runs/a --reviewed "bias=CrowS-Pairs 54.1 [51.2, 57.0], Ann, May"
    """
    folder = paths.run_folder(run)
    notes = {}
    for word in reviewed:
        item, equals, note = word.partition("=")
        if not equals:
            raise ConfigError(f"--reviewed {word} must be ITEM=NOTE, as in bias='CrowS-Pairs 54.1'")
        if item.strip() in notes:
            raise ConfigError(f"--reviewed {item.strip()} is given twice; put all in one note")
        notes[item.strip()] = note.strip()
    from jaxgen.report import card as cards

    text = cards.make_card(folder, licence=licence, data_licence=data_licence, reviewed=notes)
    path = folder / "README.md" if out is None else files.to_path(out)
    cards.write_card(text, path)
    print(f"wrote {path}")
