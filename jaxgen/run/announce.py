"""What a run says of itself before its first step and after its last."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxgen import data, tree
from jaxgen.config import ModelConfig
from jaxgen.mesh import device_mesh
from jaxgen.models import api
from jaxgen.ops.cpu import allocator
from jaxgen.run import shapes
from jaxgen.run.conversations import PLAIN
from jaxgen.run.job import Run
from jaxgen.store import directory
from jaxgen.store.checkpoints import Restored
from jaxgen.train import goodput, partitioner, plot, schedule
from jaxgen.train.display import short
from jaxgen.train.log import METRICS, Log, Mute

# The verb that asks a model for what it has learned; of the others, generate.
VERBS = {"masked": "fill-mask", "pairs": "translate", "chat": "chat", "classes": "classify"}
VERBS |= {"preferences": "chat", "feedback": "chat", "rewards": "classify"}
# What a picture of a run shows, where that is no loss per token.
LOSSES = {"preferences": "loss per pair", "rewards": "loss per pair"}
LOSSES |= {"feedback": "loss per completion", "classes": "loss in nats per text"}
LOSSES |= {"policy": "mean reward; of validation, that of the likeliest completion"}


def resume(run: Run, restored: Restored | None, removed: Sequence[int], log: Log | Mute) -> None:
    """Say where a run goes on, if it does, and what has changed since."""
    begin = 0 if restored is None else restored.step
    if restored is not None:
        for warning in restored.warnings:
            log.say(f"warning: {warning}")
        log.say(_where(run, begin))
    if removed:
        log.say(f"removed the later steps {', '.join(map(str, removed))}")
    _say_changes(run, begin, log)


def _where(run: Run, begin: int) -> str:
    steps, epochs = run.settings.train.steps, run.settings.train.epochs
    if begin < steps:
        return f"resuming at step {begin} of {steps}"
    more = f"train.steps={2 * begin}" if epochs is None else f"train.epochs={2 * epochs:g}"
    return f"all {steps} steps are made; `jaxgen train {run.folder} {more}` goes on"


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


def introduce(run: Run, batches: data.Batches, log: Log | Mute) -> None:
    """Say what is about to be trained, on what, and which settings have no effect."""
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
    private = run.budget.introduction() if run.budget else []
    for line in [*getattr(batches.rows, "notes", list)(), *private]:
        log.say(line)
    if settings.epochs is not None:
        log.say(f"train.epochs={settings.epochs:g} are {settings.steps} steps")
    if not run.validates:
        log.say("no validation: the data settings keep no text for it")
    log.say("compiling the training step (once)")


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


def conclude(run: Run, log: Log, early: str) -> None:
    """Draw the loss, say where the time went and what the model can be asked for.

    early: why the run has ended before its last step, "" if it hasn't.
    """
    # Other processes don't take part, so what lies on the disk is asked, not they.
    steps = directory.list_steps(run.checkpoints.folder)
    if early:
        log.say(f"ended at step {steps[-1]}: {early}")
    if run.budget is not None:
        run.budget.write_card(run.folder, steps[-1])
    title = f"{run.folder.name}: {short(tree.count(api.abstract(run.settings.model)))}"
    refusal = plot.draw_loss(
        *(log.folder / METRICS, log.folder / "loss.png"),
        title=f"{title} parameters",
        of="reward" if run.is_policy else "loss",
        about=LOSSES.get(run.settings.objective.name, plot.NATS),
    )
    log.say(refusal or f"drew {run.folder / 'loss.png'}")
    log.settle()
    log.say(goodput.describe(goodput.spent(goodput.read_times(log.folder))))
    verb = VERBS.get(run.settings.objective.name, "generate")
    if verb == "translate" and run.settings.model.topology == "decoder":
        verb = "generate"
    best = directory.rank_by_metric(run.checkpoints.folder, steps)[:1]
    named = "".join(f"; the best validation is that of step {step} (--step best)" for step in best)
    log.say(f"done: {run.folder}{named}; try `jaxgen {verb} {run.folder}`")
