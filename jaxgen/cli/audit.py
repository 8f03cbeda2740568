"""`jaxgen audit`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, paths, start
from jaxgen.cli.arguments import Step, at_least

Run = Annotated[str, Parameter(help="a run of plain text, or its name in runs/")]
Candidates = Annotated[
    int, at_least(1), Parameter(help="other secrets that each canary is ranked among")
]
Members = Annotated[
    int, at_least(2), Parameter(help="pieces of training text, and as many of held-out text")
]
Shadows = Annotated[
    int,
    at_least(0),
    Parameter(help="models trained as the run was, on other halves of the text (LiRA); even"),
]
Prefix = Annotated[int, at_least(1), Parameter(help="tokens of a beginning of training text")]
Length = Annotated[int, at_least(1), Parameter(help="tokens that are made after it")]
Batch = Annotated[int, at_least(1), Parameter(help="texts at once")]
Seed = Annotated[int, at_least(0), Parameter(help="of which pieces are drawn")]
Out = Annotated[str | None, Parameter(help="folder of audit.json and .html; the run's, by default")]


def audit(
    run: Run,
    /,
    *,
    candidates: Candidates = 4096,
    members: Members = 256,
    shadows: Shadows = 0,
    prefix: Prefix = 16,
    length: Length = 32,
    batch: Batch = 64,
    seed: Seed = 0,
    out: Out = None,
    step: Step = None,
) -> None:
    """Measure what a run has memorised of its training text, by attacking it.

    Membership by loss, and by LiRA with --shadows; extraction after beginnings of
    the text. Of a run with data.canaries.number=100, say, which plants made-up
    secrets, their exposure, and a lower bound of epsilon beside the accountant's.
    Writes audit.json and audit.html; `jaxgen report` shows them too.

    For example:
        jaxgen audit runs/my
        jaxgen audit runs/private --candidates 65536 --shadows 8
    """
    from jaxgen.run.folder import AUDIT

    folder, which = paths.run_folder(run), paths.checkpoint(step)
    home = files.to_path(out) if out else folder / AUDIT
    paths.check_folder(home)
    cache = paths.cache()
    start.prepare_jax(cache)
    from jaxgen.audit import make
    from jaxgen.audit.page import rows

    settings = make.AuditSettings(
        candidates=candidates,
        members=members,
        shadows=shadows,
        prefix=prefix,
        length=length,
        batch=batch,
        seed=seed,
    )
    with exits.in_folder(folder):
        data = make.make_audit(
            folder,
            settings,
            cache=cache,
            say=lambda line: print(line, file=sys.stderr),
            step=which,
        )
        written = make.write_audit(data, home)
    terminal.print_rows(rows(data))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
