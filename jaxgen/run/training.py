"""Training as one document: claim the folder, prepare, restore, fit, save, show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path

import jax

from jaxgen import data, files, host, tree
from jaxgen import settings as sets
from jaxgen.errors import PREEMPTED, NonFiniteError
from jaxgen.mesh import make as meshes
from jaxgen.mesh.group import ALONE, Group
from jaxgen.models import api
from jaxgen.pretrained.assets import copy_assets
from jaxgen.profile import take
from jaxgen.run import facts, initial, inputs, peers, post_mortem, profiling
from jaxgen.run.folder import CONFIG, LOCK, TOKENIZER, changed_settings, claimed, kept_settings
from jaxgen.run.job import Run
from jaxgen.run.settings import Settings, refuse_differences, resolve
from jaxgen.run.signals import StopRequest
from jaxgen.run.watchdog import Watchdog
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train import flops, forms, plot, schedule
from jaxgen.train.log import Log, Mute
from jaxgen.train.loop import Duties, fit, is_checked, runs_ahead
from jaxgen.train.state import State

ENVIRONMENT = "env.json"
STOPPED = "stopped at step {} and saved; the same command goes on from there"


def train(
    settings: Settings,
    folder: Path,
    *,
    cache: Path,
    stop: StopRequest | None = None,
    group: Group = ALONE,
    trace: Path | None = None,
) -> None:
    """Train in `folder` up to train.steps, from its newest sound checkpoint if it has one.

    stop: an entered StopRequest, so that the time before this call is answered for too. trace:
    where a profile of a few steps goes, None for none (`profiling`).

    Writes config.yaml (resolved), tokenizer/, env.json, metrics.jsonl, events/, samples/,
    checkpoints/ and loss.png. Raises ConfigError if the folder holds a run of another config,
    BusyError if another process holds it, DataError or CheckpointError for unusable inputs,
    NonFiniteError after a streak of bad steps; SystemExit(75) once told to stop and saved.
    """
    if stop is None:
        with StopRequest() as stop:
            train(settings, folder, cache=cache, stop=stop, group=group, trace=trace)
        return
    if trace is not None:
        profiling.check(settings.train.steps, folder)
    alike = {} if group.count == 1 else peers.identity(settings) | {"--profile": trace is not None}
    group.agree("start", alike)
    group.together("devices", jax.devices)
    with ExitStack() as held:
        group.lead("run folder", lambda: held.enter_context(claimed(folder)))
        peers.see(group, folder / LOCK)
        made: list[Run] = []
        group.lead("preparing", lambda: made.append(_prepared(settings, folder, cache)))
        run = group.together(
            "prepared",
            lambda: made[0] if made else _prepared(settings, folder, cache, writes=False),
        )
        inputs_seen = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
        group.agree("inputs", inputs_seen | {"vocabulary": run.settings.model.vocab_size})
        _train(replace(run, group=group), stop, trace)


def _prepared(settings: Settings, folder: Path, cache: Path, *, writes: bool = True) -> Run:
    """Return the run of these settings, begun in `folder` unless it is there.

    writes: whether this process makes the folder; another one only looks.
    """
    kept = kept_settings(folder)
    if kept is not None:
        tokenizer = load_tokenizer(folder / TOKENIZER)
    else:
        tokenizer = inputs.make_tokenizer(settings)
    settings = resolve(settings, tokenizer)
    if kept is not None:
        refuse_differences(kept, settings, folder)
    corpus = inputs.prepare(settings, tokenizer, cache, silent=not writes)
    run = Run(settings, folder, tokenizer, corpus)
    run.check()
    if writes and kept is None:
        _found(run)
    elif writes and kept != settings:
        files.write(folder / CONFIG, sets.dump(settings))
    return run


def resume(
    folder: Path,
    assignments: Sequence[str],
    *,
    cache: Path,
    stop: StopRequest | None = None,
    group: Group = ALONE,
    trace: Path | None = None,
) -> None:
    """Go on with the run in `folder`; overrides may change only what leaves the result alone."""
    settings = changed_settings(folder, assignments)
    train(settings, folder, cache=cache, stop=stop, group=group, trace=trace)


def _found(run: Run) -> None:
    """Write what identifies the run; config.yaml comes last, for it makes the folder a run."""
    if not (run.folder / TOKENIZER).exists():
        run.tokenizer.save(run.folder / TOKENIZER)
    if run.settings.init_from is not None:
        copy_assets(run.settings.init_from, run.folder)
    about = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
    files.write_json(run.folder / ENVIRONMENT, facts.environment() | {"digests": about})
    files.write(run.folder / CONFIG, sets.dump(run.settings))


def _train(run: Run, stop: StopRequest, trace: Path | None) -> None:
    checkpoints, settings = run.checkpoints, run.settings.train
    checkpoints.clean()
    restored = checkpoints.restore(run.expected()) if checkpoints.steps() else None
    begin, batches, owed = 0, run.batches(), False
    if restored is not None:
        begin, known = restored.step, restored.extra.get("valid_loss")
        owed = known is None and is_checked(begin, settings, batches.epoch)
    made = Mute()
    if run.group.first:
        made = Log(run.folder, total_steps=settings.steps, resume_step=begin, owed=owed)
    with made as log:
        try:
            if restored is not None:
                batches.restore(restored.extra["data"])
                for warning in restored.warnings:
                    log.say(f"warning: {warning}")
                log.say(f"resuming at step {begin} of {settings.steps}")
            if trace is not None:
                profiling.check(settings.steps - begin, run.folder)
                run.group.lead("profile", partial(take.prepare, trace))
            if begin < settings.steps:
                _introduce(run, log)
            state = _first_state(run, log) if restored is None else restored.tree
            with ExitStack() as held:
                held.enter_context(stop.polling())
                dog = held.enter_context(Watchdog(run.folder, log.say))
                step, duties = run.step, _duties(run, batches, log, stop, dog)
                if trace is not None and run.group.first:
                    step = held.enter_context(profiling.Profiled(step, trace, begin, log.say))
                    duties = replace(duties, apart=step.apart)
                state, done, owed = fit(state, batches, step, settings, duties, log, owed=owed)
                unfinished = owed or done < settings.steps
                if unfinished and done not in checkpoints.steps():
                    duties.save(state, done, None)
                checkpoints.wait()
        finally:
            batches.close()
        if unfinished:
            log.say(STOPPED.format(done))
            run.group.leave(PREEMPTED)
        if run.group.first:
            _conclude(run, log)


def _first_state(run: Run, log: Log | Mute) -> State:
    start, source = run.start(), run.settings.init_from
    if start is not None and source is not None:
        record = partial(initial.record, run.folder / ENVIRONMENT, start, source)
        run.group.lead("the weights of init_from", record)
        log.say(start.told(source))
    return run.begin(start)


def _introduce(run: Run, log: Log | Mute) -> None:
    config, corpus = run.settings.model, run.corpus
    devices = jax.devices()
    spread = "" if run.mesh is None else f": {meshes.describe(run.mesh)}"
    if run.group.count > 1:
        spread += f", in {run.group.count} processes"
    log.say(
        f"{tree.count(api.abstract(config)) / 1e6:.2f} M parameters on {len(devices)} x "
        f"{devices[0].device_kind} ({jax.default_backend()}{spread}); {len(corpus.train.tokens):,} "
        f"training tokens, vocabulary {config.V}"
    )
    for told in host.tune():
        log.say(told)
    for name, value in forms.asked(run.settings.mesh.form, run.mesh).items():
        log.say(f"compiler option {name}={str(value).lower()}")
    log.say("compiling the training step (once)")


def _duties(
    run: Run, batches: data.Batches, log: Log | Mute, stop: StopRequest, dog: Watchdog
) -> Duties:
    def save(state: State, step: int, valid_loss: float | None) -> None:
        if valid_loss is not None and not isfinite(valid_loss):
            valid_loss = None
        extra = {"data": batches.state(), "valid_loss": valid_loss}
        log.settle()
        run.checkpoints.save(step, state, extra, metric=valid_loss)

    def save_aside(state: State, step: int, valid_loss: float | None) -> None:
        save(state, step, valid_loss)
        run.checkpoints.wait()
        log.say(STOPPED.format(step))
        log.close()

    @contextmanager
    def during(
        what: str, step: int, state: State | None = None, valid_loss: float | None = None
    ) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(dog.watching(what, step))
            if run.group.count > 1:
                pass  # saving takes all processes, and they agree on it between steps
            elif what == "compiling":  # the state is on the disk, or a function of the seed
                stack.enter_context(stop.rescue(stop.say_nothing_lost))
            elif state is not None:
                stack.enter_context(stop.rescue(partial(save_aside, state, step, valid_loss)))
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
    return Duties(
        validate=partial(run.validate, stop=asked),
        sample=sample,
        save=save,
        poll=run.checkpoints.poll,
        stopping=asked,
        during=during,
        doctor=partial(post_mortem.write, run),
        rate=schedule.make(run.settings.train),
        flops_per_token=flops.per_token(run.settings.model),
        peak=flops.peak(jax.devices()),
        save_every=run.settings.checkpoint.every,
        epoch=batches.epoch,
        ahead=runs_ahead(jax.default_backend(), tree.nbytes(api.abstract(run.settings.model))),
    )


def _conclude(run: Run, log: Log | Mute) -> None:
    title = f"{run.folder.name}: {tree.count(api.abstract(run.settings.model)) / 1e6:.1f} M"
    refusal = plot.draw_loss(
        run.folder / "metrics.jsonl", run.folder / "loss.png", title=f"{title} parameters"
    )
    log.say(refusal or f"drew {run.folder / 'loss.png'}")
    log.say(f"done: {run.folder}; try `jaxgen generate {run.folder}`")
