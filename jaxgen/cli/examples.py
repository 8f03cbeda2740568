"""`jaxgen examples`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import jaxgen
from jaxgen import files
from jaxgen.errors import ConfigError, nearest

JOBS = ("slurm.sbatch", "jobset.yaml", "xpk.sh")  # for clusters


def examples(
    *names: Annotated[str, Parameter(help="which to copy; without one, all are listed")],
    out: Annotated[Path, Parameter(help="folder to copy them to")] = Path(),
) -> None:
    """List small complete programs that use jaxgen as a library, or copy some.

    Each runs as it is, in seconds on two cores: a decoding step of your own, a
    logits processor, policy gradient through generation, per-example gradients,
    many seeds at once, a step on eight devices, and more. Three are jobs for
    clusters: of Slurm, of Kubernetes (a JobSet), of TPU slices by xpk.

    For example:
        jaxgen examples
        jaxgen examples custom_step policy_gradient
        python custom_step.py
        jaxgen examples slurm.sbatch
    """
    programs = _programs()
    for name in names:
        if name.removesuffix(".py") not in programs:
            hint = nearest(name, programs) or f"; there are {', '.join(programs)}"
            raise ConfigError(f"{name}: no such example{hint}")
    if not names:
        width = max(map(len, programs))
        for name, path in programs.items():
            print(f"{name:{width}}  {_purpose(path)}")
        print("\ncopy one with `jaxgen examples NAME`; programs run with python")
        return
    chosen = [programs[name.removesuffix(".py")] for name in names]
    for path in chosen:
        if (out / path.name).exists():
            raise ConfigError(
                f"{out / path.name} exists already; remove it, or choose another --out"
            )
    with files.refusals(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in chosen:
            (out / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
            print(out / path.name)


def _programs() -> dict[str, Path]:
    """Return what there is by name: programs without their ending, then jobs for clusters."""
    folder = Path(jaxgen.__file__).parent / "examples"
    programs = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    return programs | {name: folder / name for name in JOBS}


def _purpose(path: Path) -> str:
    """Return what an example shows: the first line of its docstring or comment, up to a colon."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        line = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    else:
        line = next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")
    return line.split(":")[0].rstrip(".").replace("`", "")
