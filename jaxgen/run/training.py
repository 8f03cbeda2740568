"""Training as one document: claim the folder, prepare, restore, fit, save, show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgen import data, files, tree
from jaxgen import settings as sets
from jaxgen.errors import PREEMPTED, NonFiniteError
from jaxgen.mesh import make as meshes
from jaxgen.mesh import place
from jaxgen.models import api
from jaxgen.ops import keys
from jaxgen.run import facts, initial, inputs, objective, post_mortem
from jaxgen.run.folder import (
    CHECKPOINTS,
    CONFIG,
    TOKENIZER,
    claimed,
    existing_settings,
    kept_settings,
)
from jaxgen.run.settings import Settings, build_settings, refuse_differences, resolve
from jaxgen.run.signals import StopRequest
from jaxgen.run.watchdog import Watchdog
from jaxgen.store import Checkpoints
from jaxgen.text.complete import Session
from jaxgen.text.generation import Generation
from jaxgen.tokens import Tokenizer
from jaxgen.tokens import load as load_tokenizer
from jaxgen.train import flops, forms, optimizer, plot, schedule
from jaxgen.train import state as states
from jaxgen.train.log import Log
from jaxgen.train.loop import Duties, fit, is_checked
from jaxgen.train.losses import token_loss
from jaxgen.train.state import State
from jaxgen.train.step import train_step
from jaxgen.train.validate import validate

ENVIRONMENT = "env.json"
STOPPED = "stopped at step {} and saved; the same command goes on from there"


def train(
    settings: Settings, folder: Path, *, cache: Path, stop: StopRequest | None = None
) -> None:
    """Train in `folder` up to train.steps, from its newest sound checkpoint if it has one.

    stop: an entered StopRequest, so that the time before this call is answered for too.

    Writes config.yaml (resolved), tokenizer/, env.json, metrics.jsonl, events/, samples/,
    checkpoints/ and loss.png. Raises ConfigError if the folder holds a run of another config,
    BusyError if another process holds it, DataError or CheckpointError for unusable inputs,
    NonFiniteError after a streak of bad steps; SystemExit(75) once told to stop and saved.
    """
    if stop is None:
        with StopRequest() as stop:
            train(settings, folder, cache=cache, stop=stop)
        return
    with claimed(folder):
        kept = kept_settings(folder)
        if kept is not None:
            tokenizer = load_tokenizer(folder / TOKENIZER)
        else:
            tokenizer = inputs.make_tokenizer(settings)
        settings = resolve(settings, tokenizer)
        if kept is not None:
            refuse_differences(kept, settings, folder)
        corpus = inputs.prepare(settings, tokenizer, cache)
        run = Run(settings, folder, tokenizer, corpus)
        run.check()
        if kept is None:
            _found(run)
        elif kept != settings:
            files.write(folder / CONFIG, sets.dump(settings))
        _train(run, stop)


def resume(
    folder: Path, assignments: Sequence[str], *, cache: Path, stop: StopRequest | None = None
) -> None:
    """Go on with the run in `folder`; overrides may change only what leaves the result alone."""
    settings = existing_settings(folder)
    if assignments:
        settings = build_settings(sets.override(sets.as_dict(settings), assignments))
    train(settings, folder, cache=cache, stop=stop)


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    settings: Settings
    folder: Path
    tokenizer: Tokenizer
    corpus: data.Corpus
    devices: tuple[Any, ...] | None = None  # None: all there are

    @cached_property
    def optimizer(self):
        return optimizer.make(self.settings.train, api.axes(self.settings.model))

    @cached_property
    def objective(self):
        model = self.settings.model
        return objective.make(self.settings.objective, self.tokenizer, model.topology)

    @cached_property
    def loss(self):
        train = self.settings.train
        return partial(
            token_loss, smoothing=train.smoothing, z=train.z_loss, chunk=train.loss_chunk
        )

    @cached_property
    def step(self):
        """The compiled training step; it consumes the state it is given."""
        train = self.settings.train
        step = partial(
            train_step,
            config=self.settings.model,
            optimizer=self.optimizer,
            loss=self.loss,
            accumulate=train.accumulate,
            spike=train.spike,
            patience=train.patience,
        )
        return forms.make(
            self.settings.mesh.form, step, self.mesh, self.shardings, self.settings.train.batch
        )

    @cached_property
    def mesh(self) -> Mesh | None:
        return meshes.make(self.settings.mesh, self.devices)

    @cached_property
    def shardings(self) -> Any:
        """Where each leaf of the state lives; None without a mesh."""
        if self.mesh is None:
            return None
        shapes = jax.eval_shape(self.fresh)
        return place.state_shardings(self.mesh, shapes, api.axes(self.settings.model))

    @cached_property
    def checkpoints(self) -> Checkpoints:
        keep = self.settings.checkpoint
        return Checkpoints(
            self.folder / CHECKPOINTS,
            keep_last=keep.keep_last,
            keep_best=keep.keep_best,
            verify=keep.verify,
            fingerprints={"tokenizer": self.tokenizer.fingerprint, "data": self.corpus.digest},
        )

    def check(self) -> None:
        """Raise now what would otherwise be raised once the folder is begun, or hours later."""
        assert self.optimizer
        if self.mesh is not None:
            model, train = self.settings.model, self.settings.train
            place.check_params(self.mesh, api.abstract(model), api.axes(model))
            place.check_batch(self.mesh, train.batch, train.accumulate, model.context)
        self.batches().close()
        if self.settings.init_from is not None and not self.checkpoints.steps():
            self.start()
        session = Session(self.settings.model, None, self.tokenizer)
        for prompt in self.settings.sample.prompts:
            session.encode(prompt)

    def start(self) -> initial.Initial | None:
        """Return the weights of init_from; None without it."""
        folder, model = self.settings.init_from, self.settings.model
        if folder is None:
            return None
        return initial.load(folder, model, tree.flatten(api.abstract(model)))

    def fresh(self, given: Mapping[str, Any] | None = None) -> State:
        """Return the state before the first step; given: parameters by path, not to be drawn."""
        key = keys.from_seed(self.settings.train.seed)
        params_key, dropout_key = jax.random.split(key)
        params = api.init(self.settings.model, params_key)
        params = tree.map_paths(lambda path, leaf: (given or {}).get(path, leaf), params)
        return states.make(params, self.optimizer, dropout_key)

    def begin(self, start: initial.Initial | None = None) -> State:
        """Return the state before the first step, each part made where it lives."""
        given = {} if start is None else dict(start.params)
        if self.mesh is None:
            return jax.jit(self.fresh)(given)
        return place.under(self.mesh, jax.jit(self.fresh, out_shardings=self.shardings))(given)

    def expected(self) -> Any:
        """Return shapes, dtypes and places of the state, for a checkpoint to fill."""
        shapes = jax.eval_shape(self.fresh)
        if self.mesh is None:
            return shapes
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.shardings,
        )

    def batches(self) -> data.Batches:
        train = self.settings.train
        return data.batches(
            self.corpus.train,
            context=self.settings.model.context,
            batch=train.batch,
            seed=train.seed,
            workers=self.settings.data.workers,
            process=place.own_rows(self.mesh, train.batch),
            objective=self.objective,
        )

    def validate(
        self, state: State, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return the metrics of the validation split, None if told to stop meanwhile."""
        train = self.settings.train
        rows = data.in_order(
            self.corpus.valid,
            context=self.settings.model.context,
            batch=train.batch,
            limit=train.validate_batches,
            process=place.own_rows(self.mesh, train.batch),
            objective=self.objective,
        )
        if self.mesh is not None:
            rows = (place.place_batch(self.mesh, batch, train.batch) for batch in rows)
        check = place.under(self.mesh, validate)
        rows, widths = _until(stop, rows), self.tokenizer.byte_lengths
        try:
            return check(state.params, self.settings.model, rows, widths)
        except _ToldError:
            return None

    def sample(self, params: Any) -> list[tuple[str, str]]:
        """Return (prompt, completion) for each prompt of the config."""
        wanted = self.settings.sample
        if not wanted.prompts:
            return []
        session = Session(self.settings.model, params, self.tokenizer)
        room = min(session.room(prompt) for prompt in wanted.prompts)
        settings = Generation(
            max_new_tokens=min(wanted.max_new_tokens, room),
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            seed=self.settings.train.seed,
        )
        texts = place.under(self.mesh, session.complete)(wanted.prompts, settings)
        return list(zip(wanted.prompts, texts, strict=True))


class _ToldError(Exception):
    """Somebody asked to stop."""


def _until(stop: Callable[[], bool], rows: Iterable[Any]) -> Iterator[Any]:
    for row in rows:
        if stop():
            raise _ToldError
        yield row


def _found(run: Run) -> None:
    """Write what identifies the run; config.yaml comes last, for it makes the folder a run."""
    if not (run.folder / TOKENIZER).exists():
        run.tokenizer.save(run.folder / TOKENIZER)
    if run.settings.init_from is not None:
        initial.keep_manners(run.settings.init_from, run.folder)
    about = {"data": run.corpus.digest, "tokenizer": run.tokenizer.fingerprint}
    files.write_json(run.folder / ENVIRONMENT, facts.environment() | {"digests": about})
    files.write(run.folder / CONFIG, sets.dump(run.settings))


def _train(run: Run, stop: StopRequest) -> None:
    checkpoints, settings = run.checkpoints, run.settings.train
    checkpoints.clean()
    restored = checkpoints.restore(run.expected()) if checkpoints.steps() else None
    begin, batches, owed = 0, run.batches(), False
    if restored is not None:
        begin, known = restored.step, restored.extra.get("valid_loss")
        owed = known is None and is_checked(begin, settings, batches.epoch)
    with Log(run.folder, total_steps=settings.steps, resume_step=begin, owed=owed) as log:
        try:
            if restored is not None:
                batches.restore(restored.extra["data"])
                for warning in restored.warnings:
                    log.say(f"warning: {warning}")
                log.say(f"resuming at step {begin} of {settings.steps}")
            if begin < settings.steps:
                _introduce(run, log)
            state = _first_state(run, log) if restored is None else restored.tree
            with stop.polling(), Watchdog(run.folder, log.say) as dog:
                duties = _duties(run, batches, log, stop, dog)
                state, done, owed = fit(state, batches, run.step, settings, duties, log, owed=owed)
                unfinished = owed or done < settings.steps
                if unfinished and done not in checkpoints.steps():
                    duties.save(state, done, None)
                checkpoints.wait()
        finally:
            batches.close()
        if unfinished:
            log.say(STOPPED.format(done))
            raise SystemExit(PREEMPTED)
        _conclude(run, log)


def _first_state(run: Run, log: Log) -> State:
    start = run.start()
    if start is not None:
        assert run.settings.init_from is not None
        initial.record(run.folder / ENVIRONMENT, start, run.settings.init_from)
        log.say(start.told(run.settings.init_from))
    return run.begin(start)


def _introduce(run: Run, log: Log) -> None:
    config, corpus = run.settings.model, run.corpus
    devices = jax.devices()
    spread = "" if run.mesh is None else f": {meshes.describe(run.mesh)}"
    log.say(
        f"{tree.count(api.abstract(config)) / 1e6:.2f} M parameters on {len(devices)} x "
        f"{devices[0].device_kind} ({jax.default_backend()}{spread}); {len(corpus.train.tokens):,} "
        f"training tokens, vocabulary {config.V}"
    )
    log.say("compiling the training step (once)")


def _duties(run: Run, batches: data.Batches, log: Log, stop: StopRequest, dog: Watchdog) -> Duties:
    def save(state: State, step: int, valid_loss: float | None) -> None:
        if valid_loss is not None and not isfinite(valid_loss):
            valid_loss = None
        extra = {"data": batches.state(), "valid_loss": valid_loss}
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
            if jax.process_count() > 1:
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

    return Duties(
        validate=partial(run.validate, stop=stop),
        sample=sample,
        save=save,
        poll=run.checkpoints.poll,
        stopping=stop,
        during=during,
        doctor=partial(post_mortem.write, run),
        rate=schedule.make(run.settings.train),
        flops_per_token=flops.per_token(run.settings.model),
        peak=flops.peak(jax.devices()),
        save_every=run.settings.checkpoint.every,
        epoch=batches.epoch,
    )


def _conclude(run: Run, log: Log) -> None:
    title = f"{run.folder.name}: {tree.count(api.abstract(run.settings.model)) / 1e6:.1f} M"
    refusal = plot.draw_loss(
        run.folder / "metrics.jsonl", run.folder / "loss.png", title=f"{title} parameters"
    )
    log.say(refusal or f"drew {run.folder / 'loss.png'}")
    log.say(f"done: {run.folder}; try `jaxgen generate {run.folder}`")
