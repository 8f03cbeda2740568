"""Training as one document: claim the folder, prepare, restore, fit, save, show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxgen import data, files, terminal, tree
from jaxgen import settings as sets
from jaxgen.errors import PREEMPTED, ConfigError, NonFiniteError
from jaxgen.mesh import place
from jaxgen.mesh.group import ALONE, Group
from jaxgen.models import api
from jaxgen.profile import take
from jaxgen.run import (
    announce,
    initial,
    messages,
    nonfinite_report,
    peers,
    preparing,
    profiling,
    shapes,
    signals,
)
from jaxgen.run.folder import (
    ENVIRONMENT,
    LOCK,
    changed_settings,
    claimed,
)
from jaxgen.run.job import Run
from jaxgen.run.reference import references
from jaxgen.run.saving import Saver
from jaxgen.run.settings import Settings
from jaxgen.run.signals import StopRequest
from jaxgen.run.watchdog import Watchdog
from jaxgen.store import directory
from jaxgen.store.checkpoints import Restored
from jaxgen.store.steps import Step
from jaxgen.train import adversarial, events, flops, goodput, schedule
from jaxgen.train.early_stopping import EarlyStopping, validation_losses
from jaxgen.train.log import METRICS, Log, Mute
from jaxgen.train.loop import Callbacks, fit, is_validation_due, should_dispatch_ahead
from jaxgen.train.settings import TrainSettings
from jaxgen.train.state import State

LOST = "interrupted twice: not saved since step {0}; the same command goes on from step {0}"
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
    clock = goodput.Stopwatch()
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
    if group.count == 1 and jax.process_count() > 1:
        raise ConfigError(
            f"JAX already connects {jax.process_count()} processes, and each would train alone in "
            f"{folder}; don't call jax.distributed.initialize, but start `jaxgen train` in each"
        )
    with ExitStack() as held:
        checks: list[Callable[[], None]] = []
        group.on_primary("run folder", lambda: checks.append(held.enter_context(claimed(folder))))
        if not files.in_bucket(folder):
            peers.see(group, folder / LOCK)
        made: list[Run] = []
        prepare = partial(preparing.prepared, settings, folder, cache, **more)
        group.on_primary("preparing", lambda: made.append(prepare()))
        # Without a deadline: a process that has not seen this text reads all of it.
        look = partial(prepare, writes=False)
        run = group.all_ok("prepared", lambda: made[0] if made else look(), patient=True)
        inputs_seen = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
        group.agree("inputs", inputs_seen | {"vocabulary": run.settings.model.vocab_size})
        run = replace(run, group=group, before_save=[*checks])
        _train(run, clock, stop, trace, preparing.first_step(run, step, force))


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


def _train(
    run: Run,
    clock: goodput.Stopwatch,
    stop: StopRequest,
    trace: Path | None,
    begin_at: int | None,
) -> None:
    checkpoints, settings = run.checkpoints, _within_budget(run)
    checkpoints.clean()
    with clock.phase("restoring"):
        restored = checkpoints.restore(run.expected(), begin_at) if checkpoints.steps() else None
    removed = [] if begin_at is None else _remove_later(run, begin_at)
    begin, batches, pending = 0, run.batches(), False
    if restored is not None:
        begin, known = restored.step, restored.extra.get("valid_loss") is not None
        due = run.validates and is_validation_due(begin, settings, batches.epoch)
        pending = due and not known
    history = validation_losses(run.folder / METRICS, begin - pending)
    stopping = EarlyStopping(settings.early_stopping, history)
    seen = goodput.last_sign(run.folder)
    more: Any = {"resume_step": begin, "validation_pending": pending}
    logger = _log_of(run, total_steps=settings.steps, **more)
    with logger as log, messages.collected(log.note, log.say):
        stop.say_lost = partial(_say_lost, run, log)
        clock.begin(log.time, begin, seen)
        try:
            if restored is not None:
                _restore_batches(run, restored, batches)
            announce.resume(run, restored, removed, log)
            if trace is not None:
                profiling.check(settings.steps - begin, run.folder)
                run.group.on_primary("profile", partial(take.prepare, trace))
            if begin < settings.steps and not stopping.is_over:
                announce.introduce(run, batches, log)
            state = _beginning(run, None if restored is None else restored.tree, log)
            with ExitStack() as held:
                held.enter_context(stop.polling())
                dog = held.enter_context(Watchdog(run.folder, log.say))
                step = run.step
                callbacks = _callbacks(run, clock, batches, log, stop, dog, stopping)
                if trace is not None and run.group.first:
                    step = held.enter_context(profiling.Profiled(step, trace, begin, log.say))
                    callbacks = replace(callbacks, extra_work=step.extra_work)
                clock.begin_steps()
                more = {"validation_pending": pending}
                state, done, pending = fit(state, batches, step, settings, callbacks, log, **more)
                unfinished = not stopping.is_over and (pending or done < settings.steps)
                with clock.phase("saving"):
                    _save_last(run, callbacks, state, done)
                clock.record(done)
        finally:
            batches.close()
        if isinstance(log, Log) and not unfinished:
            announce.conclude(run, log, _why(run, stopping, done))
        clock.record(done, end=True)
        if unfinished:
            log.say(STOPPED.format(done))
            run.group.leave(PREEMPTED)


def _log_of(run: Run, **more: Any) -> Log | Mute:
    """Return what writes the run's log, which is uploaded with each checkpoint of a bucket."""
    if not run.group.first:
        return Mute()
    track = run.settings.train.track
    if run.budget is not None and "tensorboard" in track:
        events.load()
    more |= {"track": track, "config": sets.as_dict(run.settings)}
    log = Log(run.folder, check=run.before_save[0], **more)
    run.before_save.insert(0, log.upload)
    return log


def _within_budget(run: Run) -> TrainSettings:
    settings = run.settings.train
    return replace(settings, steps=run.budget.most_steps()) if run.budget else settings


def _restore_batches(run: Run, restored: Restored, batches: data.Batches) -> None:
    batches.restore(restored.extra["data"])
    if run.budget is not None:
        run.budget.check(restored.extra.get("privacy"), restored.step)


def _why(run: Run, stopping: EarlyStopping, done: int) -> str:
    """Return why a run has ended before its last step, "" if it hasn't."""
    if done == run.settings.train.steps:
        return ""
    if stopping.is_over or run.budget is None:
        return stopping.why()
    spent = run.settings.train.privacy.epsilon
    return f"the budget of epsilon {spent:g} is spent; more steps need a run of their own"


def _save_last(run: Run, callbacks: Callbacks, state: State, done: int) -> None:
    run.checkpoints.wait()
    if done < run.settings.train.steps and done not in run.checkpoints.steps():
        callbacks.save(state, done, None)
        run.checkpoints.wait()


def _say_lost(run: Run, log: Log | Mute) -> None:
    line = LOST.format(max(directory.list_steps(run.checkpoints.folder), default=0))
    signals.say(line)
    log.note(line)
    log.settle()


def _remove_later(run: Run, step: int) -> list[int]:
    """Remove the checkpoints after a step, from which a run goes on again; return them."""
    steps, folder = run.checkpoints.steps(), run.checkpoints.folder
    earlier = [other for other in steps if other <= step]
    remove = partial(directory.keep_only, folder, earlier, lambda stage: None)
    run.group.on_primary("later steps", remove)
    return steps[len(earlier) :]


def _beginning(run: Run, restored: State | None, log: Log | Mute) -> State:
    """Return the state to go on from, once what a reference model says is in the run's folder."""
    with log.waiting("initialising"):
        state = _first_state(run, log) if restored is None else restored
    own = run.settings.train.adversarial
    if restored is None and own.on and own.size:
        log.say(place.under(run.mesh, adversarial.describe)(run.model_params(state), own))
    if run.reads_reference:
        with log.waiting("asking the reference model"):
            references(run, state if restored is None else None, log.say)
    return state


def _first_state(run: Run, log: Log | Mute) -> State:
    start, source = run.start(), run.settings.init_from
    if start is not None and source is not None:
        beneath = {"beneath": run.adapter is not None}
        record = partial(initial.record, run.folder / ENVIRONMENT, start, source, **beneath)
        run.group.on_primary("the weights of init_from", record)
        log.say(start.told(source))
    return run.begin(start)


@contextmanager
def _phase(
    run: Run,
    clock: goodput.Stopwatch,
    saver: Saver,
    stop: StopRequest,
    dog: Watchdog,
    what: str,
    step: int,
    state: State | None = None,
    valid_loss: float | None = None,
) -> Iterator[None]:
    """Time and watch over a phase of the loop, and see to it that a stop within it loses nothing.

    state: where saving is safe, with its validation loss.
    """

    def save_aside(state: State) -> None:
        saver.keep(state, step, valid_loss)
        clock.record(step, end=True)
        saver.log.say(STOPPED.format(step))
        saver.log.close()

    with ExitStack() as stack:
        stack.enter_context(clock.phase(what))
        stack.enter_context(dog.watching(what, step))
        if what != "training":
            stack.enter_context(saver.log.waiting(what))
        if run.group.count > 1:
            pass  # saving takes all processes, and they agree on it between steps
        elif what == "compiling":  # the state is on the disk, or a function of the seed
            stack.enter_context(stop.rescue(stop.say_nothing_lost))
        elif state is not None:
            stack.enter_context(stop.rescue(partial(save_aside, state)))
            stack.enter_context(saver.kept_if_it_fails(state, step, valid_loss))
        yield


def _callbacks(
    run: Run,
    clock: goodput.Stopwatch,
    batches: data.Batches,
    log: Log | Mute,
    stop: StopRequest,
    dog: Watchdog,
    stopping: EarlyStopping,
) -> Callbacks:
    saver = Saver(run.checkpoints, batches, log, run.budget)

    def save(state: State, step: int, valid_loss: float | None) -> None:
        clock.record(step)
        with clock.phase("saving"):
            saver.save(state, step, valid_loss)

    def validate(state: State) -> dict[str, float] | None:
        metrics = run.validate(state, stop=asked)
        if metrics is not None:
            stopping.add(int(state.step), metrics["loss"])
        return metrics

    asked = peers.Stop(run.group, stop, run.checkpoints.failed, run.checkpoints.wait)
    return Callbacks(
        validate=validate if run.validates else None,
        is_over=lambda: stopping.is_over,
        sample=partial(_sample, run, log),
        save=save,
        add_loss=saver.add_loss,
        is_best=run.checkpoints.is_best,
        poll=run.checkpoints.poll,
        stopping=asked,
        phase=partial(_phase, run, clock, saver, stop, dog),
        on_bad_streak=partial(nonfinite_report.report, run),
        rate=schedule.make(run.settings.train),
        flops_per_token=shapes.flops_per_token(run.settings),
        peak=flops.peak(jax.devices()),
        row_shares=place.own_rows(run.mesh, run.settings.train.batch)[1],
        save_every=run.settings.checkpoint.every,
        epoch=batches.epoch,
        rollout=run.rollouts if run.is_policy else None,
        cycle=run.settings.policy.iterations,
        spent=lambda step: {"epsilon": run.budget.spent(step)} if run.budget else {},
        dispatch_ahead=_dispatches_ahead(run),
    )


def _dispatches_ahead(run: Run) -> bool:
    """Return whether the host runs ahead; it can't where it makes a batch of the state."""
    weights = tree.nbytes(api.abstract(run.settings.model))
    return should_dispatch_ahead(jax.default_backend(), weights) and not run.is_policy


def _sample(run: Run, log: Log | Mute, state: State, step: int) -> None:
    try:
        pairs = run.sample(run.model_params(state))
    except NonFiniteError as error:
        # Training goes on to find out, and to say, which parameter it is.
        log.say(f"no sample at step {step}: {error}")
        return
    for prompt, text in pairs:
        log.text(step, prompt, text)
