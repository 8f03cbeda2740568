"""What comes before the first step of a run: its inputs, its settings, its folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import ceil
from pathlib import Path

from jaxgen import files
from jaxgen import settings as sets
from jaxgen.errors import ConfigError, DataError
from jaxgen.pretrained.assets import copy_assets
from jaxgen.pretrained.chat_template import write_chat_template
from jaxgen.pretrained.model import located
from jaxgen.run import facts, inputs, privacy
from jaxgen.run.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, TOKENIZER, clear, kept_settings
from jaxgen.run.job import Run
from jaxgen.run.settings import Settings, differences, resolve
from jaxgen.store import directory
from jaxgen.store.steps import Step
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train.log import TIMES
from jaxgen.train.settings import TrainSettings


def prepared(
    settings: Settings,
    folder: Path,
    cache: Path,
    *,
    onward: bool,
    force: bool,
    step: Step,
    writes: bool = True,
) -> Run:
    """Return the run of these settings, begun in `folder` unless it is there.

    writes: whether this process makes the folder; another one only looks, when that is done.
    onward, force, step: see `train`.
    """
    anew = writes and ((force and step is None) or not directory.list_steps(folder / CHECKPOINTS))
    kept = None if anew else kept_settings(folder)
    if kept is not None:
        tokenizer = load_tokenizer(folder / TOKENIZER)
    else:
        tokenizer = inputs.make_tokenizer(settings)
    settings = privacy.with_saved(resolve(settings, tokenizer), kept)
    if kept is not None and settings.train.epochs is None:
        differences(kept, settings, folder, onward=onward)  # before the text is read
    home = None if kept is None else folder
    corpus = inputs.prepare(settings, tokenizer, cache, folder=home, silent=not writes)
    settings = with_steps_and_noise(Run(settings, folder, tokenizer, corpus), kept)
    new = [] if kept is None else differences(kept, settings, folder, onward=onward)
    if kept is not None and (changed := inputs.changed_text(folder, corpus)):
        raise DataError(
            f"{changed}, or give another --out for a run of this text, or --force to begin anew"
        )
    changes = tuple(f"{key}={value} (was {old})" for key, old, value in new)
    run = Run(settings, folder, tokenizer, corpus, changes=changes)
    if changes:
        _check_changes(run, step)
    run.check()
    first_step(run, step, force)
    if writes and kept is None:
        # What a killed beginning took is part of what the run takes.
        if gone := clear(folder, but=() if force else (TIMES,)):
            print(f"{folder} is begun anew; removed {gone}", file=sys.stderr, flush=True)
        _write_identity(run)
    elif writes and kept != settings:
        files.write(folder / CONFIG, sets.dump(settings))
    return run


def first_step(run: Run, step: Step, force: bool) -> int | None:
    """Return the number of the checkpoint to go on from; None: the newest."""
    if step is None:
        return None
    steps = run.checkpoints.steps()
    begin = located(run.folder, step)[1]
    begin = begin if begin is not None or not steps else steps[-1]
    if begin not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"--from {step}: {run.folder} holds no such step; it holds {there}")
    later = [other for other in steps if other > begin]
    if later and not force:
        raise ConfigError(
            f"{run.folder} holds steps after {begin}: {', '.join(map(str, later))}; --force "
            f"removes them, or copy the folder first"
        )
    return begin


def with_steps_and_noise(run: Run, kept: Settings | None = None) -> Settings:
    """Return the run's settings with what depends on its text: steps, and the noise of privacy."""
    rows = privacy.unit_rows(run) if run.settings.train.privacy.on else None
    if rows is not None:
        run = replace(run, settings=privacy.with_sampling(run.settings, rows.count))
    if run.settings.train.epochs is not None:
        run = replace(run, settings=_with_steps(run, kept))
    return run.settings if rows is None else privacy.with_noise(run.settings, rows)


def _with_steps(run: Run, kept: Settings | None) -> Settings:
    """Return the run's settings with the steps that its epochs take.

    kept: the settings that it was begun with. Raises ConfigError if other steps are asked for.
    """
    train = run.settings.train
    batches = run.batches()
    batches.close()
    assert train.epochs is not None
    rows = train.privacy.expected or (train.units if train.federated.on else run.rows)
    steps = max(ceil(train.epochs * batches.rows.count / rows), 1)
    steps *= run.settings.policy.iterations
    unsaid = {steps, TrainSettings().steps} | ({kept.train.steps} if kept else set())
    if train.steps not in unsaid:
        raise ConfigError(
            f"train.steps={train.steps} and train.epochs={train.epochs:g} ({steps} steps) exclude "
            f"each other; leave out one of them, or set train.epochs=null"
        )
    return replace(run.settings, train=replace(train, steps=steps))


def _check_changes(run: Run, step: Step) -> None:
    """Raise ConfigError for changes that come too late for the steps that are made."""
    if step is not None:
        return  # said where it is looked for
    done, steps = (run.checkpoints.steps() or [0])[-1], run.settings.train.steps
    if steps < done:
        raise ConfigError(
            f"{run.folder} has made {done} steps already; give train.steps={done} or more"
        )
    if steps == done:
        raise ConfigError(
            f"{run.folder} has made all its {done} steps, so {run.changes[0]} changes nothing; "
            f"give more train.steps with it"
        )


def _write_identity(run: Run) -> None:
    """Write what identifies the run; config.yaml comes last, for it makes the folder a run."""
    if not (run.folder / TOKENIZER).exists():
        run.tokenizer.save(run.folder / TOKENIZER)
    if run.settings.init_from is not None:
        copy_assets(run.settings.init_from, run.folder)
    if (template := run.new_chat_template) is not None:
        write_chat_template(run.folder, template)
    about = {"text": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
    files.write_json(run.folder / ENVIRONMENT, facts.environment() | {"digests": about})
    files.write(run.folder / CONFIG, sets.dump(run.settings))
