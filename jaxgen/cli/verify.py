"""`jaxgen verify`: promises checked on the user's own config."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from jaxgen import terminal
from jaxgen.cli import arguments, exits, paths, start
from jaxgen.cli.arguments import Overrides, at_least
from jaxgen.errors import ProofError


def shards(
    config: Annotated[str, Parameter(help="a .yaml file, or its name in configs/")],
    /,
    *overrides: Overrides,
    steps: Annotated[int, at_least(1), Parameter(help="steps that are compared")] = 20,
) -> None:
    """Train on one device and on the mesh of a config, and compare the loss step by step.

    On a machine without accelerators the devices are made of its cores, as many
    as the mesh wants. Ends with 1 and the first step that differs.

    For example:
        jaxgen verify shards debug mesh=data:2,fsdp:4
    """
    arguments.check_overrides(overrides)
    from jaxgen import run

    settings, cache = run.read_settings(paths.config(config), overrides), paths.cache()
    mesh = settings.mesh
    start.prepare_jax(cache)
    import jax

    # Takes effect on the CPU only, and only before its first use.
    jax.config.update("jax_num_cpu_devices", mesh.least)
    from jaxgen.verify.shards import shards as compare

    terminal.print_rows(compare(settings, steps=steps, cache=cache))


def invariance(
    run: Annotated[
        str, Parameter(help="a run, its name in runs/, a folder, or ORG/NAME of the hub")
    ],
    /,
    *,
    length: Annotated[int, at_least(1), Parameter(help="new tokens of each request")] = 24,
    devices: Annotated[
        int, at_least(1), Parameter(help="made of the processor's cores, without a GPU")
    ] = 8,
) -> None:
    """Answer requests alone and in every company, and compare the results token by token.

    Company is a batch, its order, padding, a larger bucket and more devices; texts
    are greedy, drawn and found by beams. Ends with 1, the first token that differs
    and the first layer whose activations do.

    For example:
        jaxgen verify invariance runs/quickstart
    """
    folder, _ = paths.model(run, None)
    start.prepare_jax(paths.cache())
    import jax

    jax.config.update("jax_num_cpu_devices", devices)  # the CPU's only, before its first use
    from jaxgen.verify.invariance import invariance as compare

    with exits.in_folder(folder):
        terminal.print_rows(compare(folder, length=length))


def resume(
    config: Annotated[str, Parameter(help="a run folder, or a .yaml file or its name in configs/")],
    /,
    *overrides: Overrides,
    steps: Annotated[int, at_least(1), Parameter(help="steps that are made twice")] = 6,
    mesh: Annotated[
        str | None, Parameter(help="restore onto another mesh, as in data:2,fsdp:4")
    ] = None,
) -> None:
    """Kill a training with kill -9, restore it, and compare it with one that nobody disturbed.

    From the newest checkpoint of a run, which is only read, or from the beginning
    of a config. Compares data, random keys, loss and the sha256 of every leaf of
    the state, step by step, to the last bit; on another mesh the state as it is
    restored, data and keys to the last bit and losses to 1e-5. Ends with 1 and
    the first step and leaf that differ.

    For example:
        jaxgen verify resume runs/my
        jaxgen verify resume debug --steps 10 --mesh data:2
    """
    arguments.check_overrides(overrides)
    from jaxgen import run
    from jaxgen.mesh import settings as meshes

    cache, folder = paths.cache(), paths.begun(config)
    if folder is None:
        settings = run.read_settings(paths.config(config), overrides)
    else:
        settings = run.changed_settings(folder, overrides)
    other = None if mesh is None else meshes.MeshSettings(**meshes.parse(mesh))
    start.prepare_jax(cache)
    from jaxgen.cli import verify_stage
    from jaxgen.verify import table
    from jaxgen.verify.resume import resume as prove

    begin = {"source": folder, "steps": steps, "mesh": other}
    comparison = prove(settings, **begin, cache=cache, launch=verify_stage.launch)
    table.print_resume(comparison)
    if comparison.difference:
        raise ProofError(comparison.difference)


def checkpoints(
    run: Annotated[str, Parameter(help="a run folder, or its name in runs/")],
    /,
) -> None:
    """List the checkpoints of a run, and compare every byte of each with its sha256.

    A run that is training may go on meanwhile: nothing is written. Ends with 1
    and the damaged files if there are any; training, generating and evaluating
    pass over such a checkpoint to the newest sound one.

    For example:
        jaxgen verify checkpoints runs/my
    """
    folder = paths.run_folder(run)
    start.prepare_jax(paths.cache())
    from jaxgen.verify import checkpoints as kept

    damaged, sound = [], 0
    for index, line in enumerate(kept.checkpoints(folder)):
        if not index:
            print(f"{'step':>8}  {'saved (UTC)':<19}  {'MiB':>9}  {'valid loss':>10}")
        saved = (line.saved or "-")[:19].replace("T", " ")
        size = "-" if line.nbytes is None else f"{line.nbytes / 2**20:,.1f}"
        loss = "-" if line.loss is None else f"{line.loss:.4f}"
        state = "unsound" if line.problems else "sound, the best" if line.best else "sound"
        print(f"{line.step:>8}  {saved:<19}  {size:>9}  {loss:>10}  {state}", flush=True)
        damaged += line.problems
        sound += not line.problems
    for name in kept.unfinished(folder):
        print(f"{name} is of a save that is under way or was interrupted; the run clears it away")
    if damaged:
        more = f" (and {len(damaged) - 3} more)" if len(damaged) > 3 else ""
        rest = "the others are sound" if sound else "put back a copy, or begin a new run"
        raise ProofError(f"{'; '.join(damaged[:3])}{more}; {rest}")


VERBS = (
    (checkpoints, "checkpoints", "RUN"),
    (invariance, "invariance", "RUN [--length N] [--devices N]"),
    (resume, "resume", "RUN|CONFIG [KEY=VALUE ...] [--steps N] [--mesh MESH]"),
    (shards, "shards", "CONFIG [KEY=VALUE ...] [--steps N]"),
)


def make_verify(**looks) -> App:
    """Return the group of verbs; `looks` are those of the whole command."""
    app = App(name="verify", help="Check a promise on your own config or run.", **looks)
    for order, (verb, name, usage) in enumerate(VERBS):
        app.command(verb, name=name, sort_key=order, usage=f"Usage: jaxgen verify {name} {usage}")
    return app
