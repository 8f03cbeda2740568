"""Training as one document: claim the folder, prepare, restore, fit, save, show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxgen import data, terminal, tree
from jaxgen import settings as sets
from jaxgen.config import ModelConfig
from jaxgen.errors import PREEMPTED, ConfigError, NonFiniteError
from jaxgen.mesh import device_mesh, place
from jaxgen.mesh.group import ALONE, Group
from jaxgen.models import api
from jaxgen.ops.cpu import allocator
from jaxgen.profile import take
from jaxgen.run import (
    initial,
    messages,
    nonfinite_report,
    peers,
    preparing,
    profiling,
    shapes,
    signals,
)
from jaxgen.run.conversations import PLAIN
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
from jaxgen.store.steps import Step
from jaxgen.train import flops, partitioner, plot, schedule
from jaxgen.train.display import short
from jaxgen.train.early_stopping import EarlyStopping, validation_losses
from jaxgen.train.log import Log, Mute
from jaxgen.train.loop import Callbacks, fit, is_validation_due, should_dispatch_ahead
from jaxgen.train.state import State

METRICS = "metrics.jsonl"
# The verb that asks a model for what it has learned; of the others, generate.
VERBS = {"masked": "fill-mask", "pairs": "translate", "chat": "chat", "classes": "classify"}
VERBS |= {"preferences": "chat", "feedback": "chat", "rewards": "classify"}
# What a picture of a run shows, where that is no loss per token.
LOSSES = {"preferences": "loss per pair", "rewards": "loss per pair"}
LOSSES |= {"feedback": "loss per completion", "classes": "loss in nats per text"}
LOSSES |= {"policy": "mean reward; of validation, that of the likeliest completion"}
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
        group.on_primary("run folder", lambda: held.enter_context(claimed(folder)))
        peers.see(group, folder / LOCK)
        made: list[Run] = []
        prepare = partial(preparing.prepared, settings, folder, cache, **more)
        group.on_primary("preparing", lambda: made.append(prepare()))
        # Without a deadline: a process that has not seen this text reads all of it.
        look = partial(prepare, writes=False)
        run = group.all_ok("prepared", lambda: made[0] if made else look(), patient=True)
        inputs_seen = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
        group.agree("inputs", inputs_seen | {"vocabulary": run.settings.model.vocab_size})
        run = replace(run, group=group)
        _train(run, stop, trace, preparing.first_step(run, step, force))


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
    history = validation_losses(run.folder / METRICS, begin - pending)
    stopping = EarlyStopping(settings.early_stopping, history)
    logger = Mute()
    if run.group.first:
        total = settings.steps
        track, config = settings.track, sets.as_dict(run.settings)
        more = {"validation_pending": pending, "track": track, "config": config}
        logger = Log(run.folder, total_steps=total, resume_step=begin, **more)
    with logger as log, messages.collected(log.note, log.say):
        stop.say_lost = partial(_say_lost, run, log)
        try:
            if restored is not None:
                batches.restore(restored.extra["data"])
                for warning in restored.warnings:
                    log.say(f"warning: {warning}")
                log.say(_where(run, begin))
            if removed:
                log.say(f"removed the later steps {', '.join(map(str, removed))}")
            _say_changes(run, begin, log)
            if trace is not None:
                profiling.check(settings.steps - begin, run.folder)
                run.group.on_primary("profile", partial(take.prepare, trace))
            if begin < settings.steps and not stopping.is_over:
                _introduce(run, batches, log)
            state = _beginning(run, None if restored is None else restored.tree, log)
            with ExitStack() as held:
                held.enter_context(stop.polling())
                dog = held.enter_context(Watchdog(run.folder, log.say))
                step, callbacks = run.step, _callbacks(run, batches, log, stop, dog, stopping)
                if trace is not None and run.group.first:
                    step = held.enter_context(profiling.Profiled(step, trace, begin, log.say))
                    callbacks = replace(callbacks, extra_work=step.extra_work)
                state, done, pending = fit(
                    state, batches, step, settings, callbacks, log, validation_pending=pending
                )
                unfinished = not stopping.is_over and (pending or done < settings.steps)
                checkpoints.wait()
                if done < settings.steps and done not in checkpoints.steps():
                    callbacks.save(state, done, None)
                    checkpoints.wait()
        finally:
            batches.close()
        if unfinished:
            log.say(STOPPED.format(done))
            run.group.leave(PREEMPTED)
        if stopping.is_over and done < settings.steps:
            log.say(f"ended at step {done}: {stopping.why()}")
        if run.group.first:
            _conclude(run, log)


def _say_lost(run: Run, log: Log | Mute) -> None:
    line = LOST.format(max(directory.list_steps(run.checkpoints.folder), default=0))
    signals.say(line)
    log.note(line)
    log.settle()


def _where(run: Run, begin: int) -> str:
    steps, epochs = run.settings.train.steps, run.settings.train.epochs
    if begin < steps:
        return f"resuming at step {begin} of {steps}"
    more = f"train.steps={2 * begin}" if epochs is None else f"train.epochs={2 * epochs:g}"
    return f"all {steps} steps are made; `jaxgen train {run.folder} {more}` goes on"


def _remove_later(run: Run, step: int) -> list[int]:
    """Remove the checkpoints after a step, from which a run goes on again; return them."""
    steps, folder = run.checkpoints.steps(), run.checkpoints.folder
    earlier = [other for other in steps if other <= step]
    remove = partial(directory.keep_only, folder, earlier, lambda stage: None)
    run.group.on_primary("later steps", remove)
    return steps[len(earlier) :]


def _say_changes(run: Run, begin: int, log: Log | Mute) -> None:
    settings = run.settings.train
    for change in run.changes:
        log.say(f"from step {begin} on: {change}")
    if run.changes:
        rate = float(schedule.make(settings)(begin))
        log.say(
            f"the learning rate is now {rate:.3g}, as {settings.schedule} over {settings.steps} "
            f"steps has it"
        )


def _beginning(run: Run, restored: State | None, log: Log | Mute) -> State:
    """Return the state to go on from, once what a reference model says is in the run's folder."""
    with log.waiting("initialising"):
        state = _first_state(run, log) if restored is None else restored
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


def _introduce(run: Run, batches: data.Batches, log: Log | Mute) -> None:
    config, corpus = run.settings.model, run.corpus
    devices = jax.devices()
    spread = "" if run.mesh is None else f": {device_mesh.describe(run.mesh)}"
    if run.group.count > 1:
        spread += f", in {run.group.count} processes"
    log.say(
        f"{short(tree.count(api.abstract(config)))} parameters{_active(config)}{_beside(run)} on "
        f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}{spread}); "
        f"{getattr(batches.rows, 'tokens', len(corpus.train.tokens)):,} training tokens, "
        f"vocabulary {config.V}"
    )
    for line in corpus.notes:  # shown before there was a log
        log.note(line)
    if run.settings.init_from and run.chat_template and run.chat_template.source == PLAIN:
        log.say(
            f"{run.settings.init_from} has no chat template, so chats are laid by a plain one "
            f"(User: ..., eos); objective.template names another"
        )
    for setting in allocator.tune():
        log.note(setting)
    for name, value in partitioner.compile_options_for(run.settings.mesh.form, run.mesh).items():
        log.note(f"compiler option {name}={str(value).lower()}")
    settings = run.settings.train
    if settings.warmup > settings.steps:
        log.say(
            f"train.warmup={settings.warmup} is longer than the run; it is cut to "
            f"train.steps={settings.steps}"
        )
    for line in getattr(batches.rows, "notes", list)():
        log.say(line)
    if settings.epochs is not None:
        log.say(f"train.epochs={settings.epochs:g} are {settings.steps} steps")
    if not run.validates:
        log.say("no validation: the data settings keep no text for it")
    log.say("compiling the training step (once)")


def _callbacks(
    run: Run,
    batches: data.Batches,
    log: Log | Mute,
    stop: StopRequest,
    dog: Watchdog,
    stopping: EarlyStopping,
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
        save=saver.save,
        add_loss=saver.add_loss,
        is_best=run.checkpoints.is_best,
        poll=run.checkpoints.poll,
        stopping=asked,
        phase=phase,
        on_bad_streak=partial(nonfinite_report.report, run),
        rate=schedule.make(run.settings.train),
        flops_per_token=shapes.flops_per_token(run.settings),
        peak=flops.peak(jax.devices()),
        row_shares=place.own_rows(run.mesh, run.settings.train.batch)[1],
        save_every=run.settings.checkpoint.every,
        epoch=batches.epoch,
        rollout=run.rollouts if run.is_policy else None,
        cycle=run.settings.policy.iterations,
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


def _active(config: ModelConfig) -> str:
    """Return how many of the parameters a token uses, where it is not all."""
    used = sum(api.active(config).values())
    return f" ({short(used)} of them a token's)" if config.experts.number else ""


def _beside(run: Run) -> str:
    """Return how many numbers an adapter has, where one is trained."""
    if run.adapter is None:
        return ""
    count = tree.count(shapes.trained(run.settings)[0])
    return f", {short(count)} of an adapter ({run.settings.adapter.kind}) trained beside them,"


def _conclude(run: Run, log: Log | Mute) -> None:
    title = f"{run.folder.name}: {short(tree.count(api.abstract(run.settings.model)))}"
    refusal = plot.draw_loss(
        *(run.folder / METRICS, run.folder / "loss.png"),
        title=f"{title} parameters",
        of="reward" if run.is_policy else "loss",
        about=LOSSES.get(run.settings.objective.name, plot.NATS),
    )
    log.say(refusal or f"drew {run.folder / 'loss.png'}")
    verb = VERBS.get(run.settings.objective.name, "generate")
    if verb == "translate" and run.settings.model.topology == "decoder":
        verb = "generate"
    log.say(f"done: {run.folder}; try `jaxgen {verb} {run.folder}`")
