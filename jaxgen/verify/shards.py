"""Whether a mesh gives the loss curve of one device, for the user's own config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax

from jaxgen.errors import ProofError
from jaxgen.mesh import MeshSettings, device_mesh
from jaxgen.run import inputs
from jaxgen.run.settings import Settings, resolve
from jaxgen.run.training import Run

TOLERANCE = 1e-5  # relative: sums over devices round in another order


def shards(settings: Settings, *, steps: int, cache: Path) -> list[tuple[str, str]]:
    """Return (name, value) rows that show the two loss curves to agree over `steps` steps.

    Trains from the beginning, once on one device and once on the mesh of the settings, on the same
    data with the same dropout; nothing is written but the cache. Raises ProofError with the first
    step that differs by more than 1e-5, ConfigError for a mesh that does not fit.
    """
    tokenizer = inputs.make_tokenizer(settings)
    settings = resolve(settings, tokenizer)
    corpus = inputs.prepare(settings, tokenizer, cache)
    many = Run(settings, Path(), tokenizer, corpus)
    many.check()
    alone = replace(settings, mesh=MeshSettings())
    one = replace(many, settings=alone, devices=(jax.devices()[0],))
    single, spread = _curve(one, steps), _curve(many, steps)
    worst = 0.0
    for step, (expected, many_loss) in enumerate(zip(single, spread, strict=True), 1):
        error = abs(many_loss / expected - 1)
        worst = max(worst, error)
        if not error <= TOLERANCE:  # a NaN proves nothing either
            raise ProofError(
                f"step {step}: the loss is {expected!r} on one device and {many_loss!r} on "
                f"{device_mesh.describe(many.mesh)}: {error:.2e} apart, more than {TOLERANCE:g}; "
                f"with compute_dtype={settings.model.compute_dtype} try float32, else report it"
            )
    return [
        ("mesh", device_mesh.describe(many.mesh)),
        ("steps", str(steps)),
        ("loss", f"{single[0]:.4f} to {single[-1]:.4f} on both"),
        ("largest difference", f"{worst:.1e} relative, of {TOLERANCE:g} allowed"),
        ("proof", "the mesh gives the loss curve of one device"),
    ]


def _curve(run: Run, steps: int) -> list[float]:
    state, batches, losses = run.begin(run.start()), run.batches(), []
    try:
        for _ in range(steps):
            state, metrics = run.step(state, next(batches))
            losses.append(float(metrics["loss"]))
    finally:
        batches.close()
    return losses
