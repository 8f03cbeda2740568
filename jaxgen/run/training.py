"""Training as one document: claim the folder, prepare, restore, fit, save, show."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxgen import data, files, host, terminal, tree
from jaxgen import settings as sets
from jaxgen.errors import PREEMPTED, ConfigError, DataError, NonFiniteError
from jaxgen.mesh import device_mesh
from jaxgen.mesh.group import ALONE, Group
from jaxgen.models import api
from jaxgen.pretrained.assets import copy_assets
from jaxgen.pretrained.chat_template import write_chat_template
from jaxgen.pretrained.model import located
from jaxgen.profile import take
from jaxgen.run import bad_streak, facts, initial, inputs, messages, peers, profiling
from jaxgen.run.conversations import template_of
from jaxgen.run.folder import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    LOCK,
    TOKENIZER,
    changed_settings,
    claimed,
    clear,
    kept_settings,
)
from jaxgen.run.job import Run
from jaxgen.run.saving import Saver
from jaxgen.run.settings import Settings, differences, resolve
from jaxgen.run.signals import StopRequest
from jaxgen.run.watchdog import Watchdog
from jaxgen.store import directory
from jaxgen.store.steps import Step
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train import flops, partitioner, plot, schedule
from jaxgen.train.display import short
from jaxgen.train.log import Log, Mute
from jaxgen.train.loop import Callbacks, fit, is_validation_due, should_dispatch_ahead
from jaxgen.train.state import State

STOPPED = "stopped at step {} and saved; the same command goes on from there"


def train(
    settings: Settings,
    folder: Path,
    *,
    cache: Path,
    stop: StopRequest | None = None,
    group: Group = ALONE,
    trace: Path | None = None,
    onward: bool = False,
    force: bool = False,
    step: Step = None,
) -> None:
    """Train in `folder` up to train.steps, from its newest sound checkpoint if it has one.

    stop: an entered StopRequest, so that the time before this call is answered for too. trace:
    where a profile of a few steps goes, None for none (`profiling`). onward: whether settings may
    differ from those that the run was begun with where they decide of steps to come alone. force:
    remove what the folder holds of another run, and begin anew, as is done unasked where that run
    has no checkpoint; but with step, the checkpoint to go on from, remove the later ones alone.

    Writes config.yaml (resolved), tokenizer/, env.json, metrics.jsonl, events/, samples/,
    checkpoints/ and loss.png. Raises ConfigError if the folder holds a run of another config,
    BusyError if another process holds it, DataError or CheckpointError for unusable inputs,
    NonFiniteError after a streak of bad steps; SystemExit(75) once told to stop and saved.
    """
    more: Any = {"onward": onward, "force": force, "step": step}
    if stop is None:
        with StopRequest() as stop:
            train(settings, folder, cache=cache, stop=stop, group=group, trace=trace, **more)
        return
    if trace is not None:
        profiling.check(settings.train.steps, folder)
    alike = {} if group.count == 1 else peers.identity(settings) | {"--profile": trace is not None}
    group.agree("start", alike)
    with terminal.waiting("finding devices"):
        group.all_ok("devices", jax.devices)
    with ExitStack() as held:
        group.on_primary("run folder", lambda: held.enter_context(claimed(folder)))
        peers.see(group, folder / LOCK)
        made: list[Run] = []
        prepare = partial(_prepared, settings, folder, cache, **more)
        group.on_primary("preparing", lambda: made.append(prepare()))
        run = group.all_ok("prepared", lambda: made[0] if made else prepare(writes=False))
        inputs_seen = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
        group.agree("inputs", inputs_seen | {"vocabulary": run.settings.model.vocab_size})
        run = replace(run, group=group)
        _train(run, stop, trace, _begin_at(run, step, force))


def _begin_at(run: Run, step: Step, force: bool) -> int | None:
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


def _prepared(
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
    settings = resolve(settings, tokenizer)
    new = [] if kept is None else differences(kept, settings, folder, onward=onward)
    home = None if kept is None else folder
    corpus = inputs.prepare(settings, tokenizer, cache, folder=home, silent=not writes)
    if kept is not None and (changed := inputs.changed_text(folder, corpus)):
        raise DataError(
            f"{changed}, or give another --out for a run of this text, or --force to begin anew"
        )
    changes = tuple(f"{key}={value} (was {old})" for key, old, value in new)
    run = Run(settings, folder, tokenizer, corpus, changes=changes)
    if changes:
        _check_changes(run, step)
    run.check()
    _begin_at(run, step, force)
    if writes and kept is None:
        if gone := clear(folder):
            print(f"{folder} is begun anew; removed {gone}", file=sys.stderr, flush=True)
        _found(run)
    elif writes and kept != settings:
        files.write(folder / CONFIG, sets.dump(settings))
    return run


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


def resume(
    folder: Path,
    assignments: Sequence[str],
    *,
    cache: Path,
    stop: StopRequest | None = None,
    group: Group = ALONE,
    trace: Path | None = None,
    force: bool = False,
    step: Step = None,
) -> None:
    """Go on with the run in `folder`; overrides may change what leaves the steps made alone."""
    settings = changed_settings(folder, assignments)
    more: Any = {"onward": True, "force": force, "step": step}
    train(settings, folder, cache=cache, stop=stop, group=group, trace=trace, **more)


def _found(run: Run) -> None:
    """Write what identifies the run; config.yaml comes last, for it makes the folder a run."""
    if not (run.folder / TOKENIZER).exists():
        run.tokenizer.save(run.folder / TOKENIZER)
    if run.settings.init_from is not None:
        copy_assets(run.settings.init_from, run.folder)
    if run.settings.objective.name == "chat":
        template = template_of(run.settings, run.tokenizer, None)
        write_chat_template(run.folder, template)
    about = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
    files.write_json(run.folder / ENVIRONMENT, facts.environment() | {"digests": about})
    files.write(run.folder / CONFIG, sets.dump(run.settings))


def _train(run: Run, stop: StopRequest, trace: Path | None, begin_at: int | None) -> None:
    checkpoints, settings = run.checkpoints, run.settings.train
    checkpoints.clean()
    restored = checkpoints.restore(run.expected(), begin_at) if checkpoints.steps() else None
    removed = [] if begin_at is None else _remove_later(run, begin_at)
    begin, batches, pending = 0, run.batches(), False
    if restored is not None:
        begin, known = restored.step, restored.extra.get("valid_loss")
        due = run.validates and is_validation_due(begin, settings, batches.epoch)
        pending = known is None and due
    logger = Mute()
    if run.group.first:
        total = settings.steps
        logger = Log(run.folder, total_steps=total, resume_step=begin, validation_pending=pending)
    with logger as log, messages.collected(log.note, log.say):
        try:
            if restored is not None:
                batches.restore(restored.extra["data"])
                for warning in restored.warnings:
                    log.say(f"warning: {warning}")
                log.say(f"resuming at step {begin} of {settings.steps}")
            if removed:
                log.say(f"removed the later steps {', '.join(map(str, removed))}")
            for change in run.changes:
                log.say(f"from step {begin} on: {change}")
            if run.changes:
                rate = float(schedule.make(settings)(begin))
                log.say(f"the learning rate is now {rate:.3g}, as {settings.schedule} over "
                        f"{settings.steps} steps has it")  # fmt: skip
            if trace is not None:
                profiling.check(settings.steps - begin, run.folder)
                run.group.on_primary("profile", partial(take.prepare, trace))
            if begin < settings.steps:
                _introduce(run, batches, log)
            with log.waiting("initialising"):
                state = _first_state(run, log) if restored is None else restored.tree
            with ExitStack() as held:
                held.enter_context(stop.polling())
                dog = held.enter_context(Watchdog(run.folder, log.say))
                step, callbacks = run.step, _callbacks(run, batches, log, stop, dog)
                if trace is not None and run.group.first:
                    step = held.enter_context(profiling.Profiled(step, trace, begin, log.say))
                    callbacks = replace(callbacks, extra_work=step.extra_work)
                state, done, pending = fit(
                    state, batches, step, settings, callbacks, log, validation_pending=pending
                )
                unfinished = pending or done < settings.steps
                checkpoints.wait()
                if unfinished and done not in checkpoints.steps():
                    callbacks.save(state, done, None)
                    checkpoints.wait()
        finally:
            batches.close()
        if unfinished:
            log.say(STOPPED.format(done))
            run.group.leave(PREEMPTED)
        if run.group.first:
            _conclude(run, log)


def _remove_later(run: Run, step: int) -> list[int]:
    """Remove the checkpoints after a step, from which a run goes on again; return them."""
    steps, folder = run.checkpoints.steps(), run.checkpoints.folder
    earlier = [other for other in steps if other <= step]
    remove = partial(directory.keep_only, folder, earlier, lambda stage: None)
    run.group.on_primary("later steps", remove)
    return steps[len(earlier) :]


def _first_state(run: Run, log: Log | Mute) -> State:
    start, source = run.start(), run.settings.init_from
    if start is not None and source is not None:
        record = partial(initial.record, run.folder / ENVIRONMENT, start, source)
        run.group.on_primary("the weights of init_from", record)
        log.say(start.told(source))
    return run.begin(start)


def _introduce(run: Run, batches: data.Batches, log: Log | Mute) -> None:
    config, corpus = run.settings.model, run.corpus
    devices = jax.devices()
    spread = "" if run.mesh is None else f": {device_mesh.describe(run.mesh)}"
    if run.group.count > 1:
        spread += f", in {run.group.count} processes"
    log.say(
        f"{short(tree.count(api.abstract(config)))} parameters on {len(devices)} x "
        f"{devices[0].device_kind} ({jax.default_backend()}{spread}); {len(corpus.train.tokens):,} "
        f"training tokens, vocabulary {config.V}"
    )
    for told in host.tune():
        log.note(told)
    for name, value in partitioner.compile_options_for(run.settings.mesh.form, run.mesh).items():
        log.note(f"compiler option {name}={str(value).lower()}")
    settings = run.settings.train
    if settings.warmup > settings.steps:
        log.say(
            f"train.warmup={settings.warmup} is longer than the run; it is cut to "
            f"train.steps={settings.steps}"
        )
    if cut := getattr(batches.rows, "cut", 0):
        pairs = corpus.train.documents // 2
        log.say(f"{cut:,} of {pairs:,} pairs are longer than a row and are cut to it")
    if not run.validates:
        log.say("no validation: the data settings keep no text for it")
    log.say("compiling the training step (once)")


def _callbacks(
    run: Run, batches: data.Batches, log: Log | Mute, stop: StopRequest, dog: Watchdog
) -> Callbacks:
    saver = Saver(run.checkpoints, batches, log)

    def save_aside(state: State, step: int, valid_loss: float | None) -> None:
        saver.keep(state, step, valid_loss)
        log.say(STOPPED.format(step))
        log.close()

    @contextmanager
    def phase(
        what: str, step: int, state: State | None = None, valid_loss: float | None = None
    ) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(dog.watching(what, step))
            if what != "training":
                stack.enter_context(log.waiting(what))
            if run.group.count > 1:
                pass  # saving takes all processes, and they agree on it between steps
            elif what == "compiling":  # the state is on the disk, or a function of the seed
                stack.enter_context(stop.rescue(stop.say_nothing_lost))
            elif state is not None:
                stack.enter_context(stop.rescue(partial(save_aside, state, step, valid_loss)))
                stack.enter_context(saver.kept_if_it_fails(state, step, valid_loss))
            yield

    def sample(state: State, step: int) -> None:
        try:
            pairs = run.sample(state.params)
        except NonFiniteError as error:
            # Training goes on to find out, and to say, which parameter it is.
            log.say(f"no sample at step {step}: {error}")
            return
        for prompt, text in pairs:
            log.text(step, prompt, text)

    asked = peers.Stop(run.group, stop, run.checkpoints.failed, run.checkpoints.wait)
    return Callbacks(
        validate=partial(run.validate, stop=asked) if run.validates else None,
        sample=sample,
        save=saver.save,
        add_loss=saver.add_loss,
        is_best=run.checkpoints.is_best,
        poll=run.checkpoints.poll,
        stopping=asked,
        phase=phase,
        on_bad_streak=partial(bad_streak.report, run),
        rate=schedule.make(run.settings.train),
        flops_per_token=flops.per_token(run.settings.model),
        peak=flops.peak(jax.devices()),
        save_every=run.settings.checkpoint.every,
        epoch=batches.epoch,
        dispatch_ahead=should_dispatch_ahead(
            jax.default_backend(), tree.nbytes(api.abstract(run.settings.model))
        ),
    )


def _conclude(run: Run, log: Log | Mute) -> None:
    title = f"{run.folder.name}: {short(tree.count(api.abstract(run.settings.model)))}"
    refusal = plot.draw_loss(
        run.folder / "metrics.jsonl", run.folder / "loss.png", title=f"{title} parameters"
    )
    log.say(refusal or f"drew {run.folder / 'loss.png'}")
    log.say(f"done: {run.folder}; try `jaxgen generate {run.folder}`")
