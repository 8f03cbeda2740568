"""A run: what its settings make of model, data, mesh and checkpoints, from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxgen import data, tree
from jaxgen.adapters import adapter as adapters
from jaxgen.adapters.adapter import Adapter
from jaxgen.adapters.base import quantise
from jaxgen.data.objectives.settings import CHATS, PREFERENCES
from jaxgen.data.prompts import record_of
from jaxgen.errors import ConfigError, DataError
from jaxgen.mesh import device_mesh, place
from jaxgen.mesh.group import ALONE, Group
from jaxgen.models import api
from jaxgen.ops import keys
from jaxgen.pretrained.chat_template import ChatTemplate, has_chat_template
from jaxgen.run import forecast, initial, objective, samples, shapes
from jaxgen.run.check_private import check_clients
from jaxgen.run.conversations import encoder_of, template_of
from jaxgen.run.folder import CHECKPOINTS, ENVIRONMENT
from jaxgen.run.privacy import Budget, unit_batches, unit_rows
from jaxgen.run.reference import Reference, references
from jaxgen.run.rollouts import Rollouts
from jaxgen.run.settings import Settings
from jaxgen.run.step import loss_of, objective_loss, step_of
from jaxgen.run.teacher import Teacher, read_teacher
from jaxgen.store import Checkpoints, disk_space
from jaxgen.tokens import Tokenizer
from jaxgen.train import partitioner, quantised, wandb_run
from jaxgen.train import state as states
from jaxgen.train.log_probs import mean_kl
from jaxgen.train.losses import Loss
from jaxgen.train.state import State
from jaxgen.train.validate import StoppedError, until, validate, validate_loss


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    settings: Settings
    folder: Path
    tokenizer: Tokenizer
    corpus: data.Corpus
    devices: tuple[Any, ...] | None = None  # None: all there are
    group: Group = ALONE
    changes: tuple[str, ...] = ()  # of settings, since the steps that are made
    before_save: list[Callable[[], object]] = field(default_factory=list)  # before a step is whole

    @cached_property
    def optimizer(self):
        return shapes.rule(self.settings)

    @cached_property
    def adapter(self) -> Adapter | None:
        """The form of the adapter that is trained; None: all parameters are."""
        return shapes.adapter(self.settings)

    @cached_property
    def base(self) -> Any:
        """The parameters beneath the adapter, where they live; None without one."""
        start = None if self.adapter is None else self.start()
        if start is None or self.settings.init_from is None:
            return None
        initial.check_same(self.folder / ENVIRONMENT, start, self.settings.init_from)
        model, where = self.settings.model, None
        if self.mesh is not None:
            where = place.state_shardings(self.mesh, api.abstract(model), api.axes(model))
        make = place.under(self.mesh, jax.jit(self._params, out_shardings=where))
        params = make(dict(start.params))
        return place.under(self.mesh, quantise)(params, model, self.settings.adapter.base)

    def model_params(self, state: State) -> Any:
        """Return the parameters to validate and generate with, the adapter around its weights."""
        return self.attached(states.evaluation_params(state))

    def attached(self, params: Any) -> Any:
        """Return trained parameters with those beneath them; themselves without an adapter."""
        return shapes.attached(self.settings, self.adapter, self.base, params)

    @cached_property
    def objective(self):
        model = self.settings.model
        own = self.settings.data.augment
        return objective.make(self.settings.objective, self.tokenizer, model.topology, own)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """How a chat is laid; None for objectives without chats."""
        if self.asks_text:
            return None
        if self.settings.objective.name == "chat" or has_chat_template(self.folder):
            return template_of(self.settings, self.tokenizer, self.folder)
        return self.new_chat_template

    @property
    def new_chat_template(self) -> ChatTemplate | None:
        """How a new run lays chats; None for objectives without them, or plain texts alone."""
        if self.settings.objective.name not in CHATS or self.asks_text:
            return None
        chats = encoder_of(self.settings, self.tokenizer, None).chats
        return chats and chats.template

    @cached_property
    def references(self) -> dict[str, Reference]:
        """What the model that training begins with says of each split."""
        return references(self)

    @cached_property
    def teacher(self) -> Teacher:
        """The model that is learnt from, of distill.teacher."""
        return read_teacher(self.settings, self.tokenizer, self.folder, self.corpus.digest)

    @cached_property
    def rollouts(self) -> Rollouts:
        """What writes and judges completions, of objective.name=policy."""
        return Rollouts(self)

    @property
    def is_policy(self) -> bool:
        """Whether the model learns from its own completions."""
        return self.settings.objective.name == "policy"

    @property
    def asks_text(self) -> bool:
        """Whether a policy's prompts are texts, not messages."""
        return self.is_policy and isinstance(record_of(self.corpus.train, 0)["prompt"], str)

    @property
    def rows(self) -> int:
        """Rows of the data that a step reads; a policy reads a prompt for each of its groups."""
        group = self.settings.policy.group if self.is_policy else 1
        return self.settings.train.batch // group

    @property
    def reads_reference(self) -> bool:
        """Whether the loss is relative to a reference model: the one that training begins with."""
        preference, name = self.settings.preference, self.settings.objective.name
        return name in ("preferences", "feedback") and preference.has_reference

    @cached_property
    def loss(self):
        return loss_of(self.settings, self.base)

    @cached_property
    def step(self):
        """The compiled training step; it consumes the state it is given."""
        step = step_of(self.settings, self.optimizer)
        return partitioner.make_step(
            *(self.settings.mesh.form, step, self.mesh, self.shardings, self.settings.train.batch),
            self.base,
        )

    @cached_property
    def mesh(self) -> Mesh | None:
        return device_mesh.make_mesh(self.settings.mesh, self.devices)

    @cached_property
    def shardings(self) -> Any:
        """Where each leaf of the state lives; None without a mesh."""
        if self.mesh is None:
            return None
        return place.state_shardings(self.mesh, self.shapes, shapes.trained(self.settings)[1])

    @cached_property
    def shapes(self) -> State:
        """The state as ShapeDtypeStructs."""
        # Those of the parameters are known without tracing how they are drawn.
        key, rule = self._keys()[1], self.optimizer
        made = lambda params: shapes.train_state(self.settings, params, rule, key)  # noqa: E731
        return jax.eval_shape(made, shapes.trained(self.settings)[0])

    @cached_property
    def checkpoints(self) -> Checkpoints:
        keep = self.settings.checkpoint
        more: Any = {"keep_last": keep.keep_last, "keep_best": keep.keep_best}
        more |= {"verify": keep.verify, "group": self.group}
        more["before"] = lambda: [action() for action in self.before_save]
        fingerprints = {"tokenizer": self.tokenizer.fingerprint, "text": self.corpus.digest}
        return Checkpoints(self.folder / CHECKPOINTS, fingerprints=fingerprints, **more)

    def check(self) -> None:
        """Raise now what would otherwise be raised once the folder is begun, or hours later."""
        assert self.optimizer
        if self.mesh is not None:
            model, train = self.settings.model, self.settings.train
            place.check_params(self.mesh, api.abstract(model), api.axes(model))
            place.check_batch(self.mesh, train.batch, train.accumulate, self.settings.row_length)
            check_clients(self.mesh, train)
        self.batches().close()
        if self.is_policy:
            self.rollouts.check()
        if self.settings.distill.teacher is not None:
            assert self.teacher
        if self.validates:
            self._check_validation()
        elif self.settings.train.early_stopping is not None:
            raise ConfigError(
                f"train.early_stopping={self.settings.train.early_stopping} counts validations, "
                f"but the data settings keep no text for them; set data.valid_fraction"
            )
        self._check_room()
        wandb_run.check(self.settings.train.track)
        forecast.check(self.settings)
        if self.settings.init_from is not None and not self.checkpoints.steps():
            self.start()
        samples.check(self.settings, self.tokenizer, self.chat_template)

    @property
    def validates(self) -> bool:
        """Whether there is validation text."""
        return len(self.corpus.valid.tokens) > 0

    def _check_validation(self) -> None:
        if not any((batch["weights"] != 0).any() for batch in self._validation((0, 1))):
            raise DataError(
                "the validation text has no token to predict; give more of it, or none with "
                "data.valid_fraction=0"
            )

    def _check_room(self) -> None:
        keep, done = self.settings.checkpoint, (self.checkpoints.steps() or [0])[-1]
        saves = -(-(self.settings.train.steps - done) // keep.every)
        # A step is deleted once the next is whole.
        most = min(saves, keep.keep_last + keep.keep_best + 1)
        disk_space.check_run(self.checkpoints.folder, self.shapes, most)

    def start(self) -> initial.Initial | None:
        """Return the weights of init_from; None without it."""
        folder, model = self.settings.init_from, self.settings.model
        if folder is None:
            return None
        wanted, seed = tree.flatten(api.abstract(model)), self.settings.train.seed
        start = initial.load(folder, model, wanted, seed=seed)
        if self.adapter is not None:
            start.check_beneath(self.adapter.saved)
        return start

    def fresh(self, given: Any = None) -> State:
        """Return the state before the first step.

        given: parameters by path, not to be drawn; with an adapter, those beneath it.
        """
        params_key, dropout_key = self._keys()
        if self.adapter is None:
            params = self._params(given or {})
        else:
            initial = self.settings.adapter.initial
            params = adapters.init(
                *(self.adapter, self.settings.model, given, params_key), initial=initial
            )
        return shapes.train_state(self.settings, params, self.optimizer, dropout_key)

    def _params(self, given: Mapping[str, Any]) -> Any:
        """Return the parameters of the model; given: by path, those that are not drawn."""
        params = api.init(self.settings.model, self._keys()[0])
        return tree.map_paths(lambda path, leaf: given.get(path, leaf), params)

    def _keys(self) -> tuple[PRNGKeyArray, PRNGKeyArray]:
        """Return the keys of the parameters and of dropout."""
        params, dropout = jax.random.split(keys.from_seed(self.settings.train.seed))
        return params, dropout

    @property
    def measures_kl(self) -> bool:
        """Whether the divergence from a reference is measured: of pairs that are judged by one."""
        return self.reads_reference and self.settings.objective.name == "preferences"

    def begin(self, start: initial.Initial | None = None) -> State:
        """Return the state before the first step, each part made where it lives."""
        given = self.base if self.adapter else {} if start is None else dict(start.params)
        return place.under(self.mesh, jax.jit(self.fresh, out_shardings=self.shardings))(given)

    @cached_property
    def reference_params(self) -> Any:
        """The parameters that a policy is held near, and preferences are measured from."""
        return self.first_params()

    def first_params(self) -> Any:
        """Return the parameters of the model that training begins with, as it was begun."""
        start = None if self.adapter else self.start()
        if start is not None and self.settings.init_from is not None:
            initial.check_same(self.folder / ENVIRONMENT, start, self.settings.init_from)
        return self.model_params(self.begin(start))

    def expected(self) -> Any:
        """Return shapes, dtypes and places of the state, for a checkpoint to fill."""
        if self.mesh is None:
            return self.shapes
        placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
        return jax.tree.map(placed, self.shapes, self.shardings)

    @cached_property
    def budget(self) -> Budget | None:
        """What the steps of a private run cost; None: it isn't private."""
        return Budget(self.settings, unit_rows(self)) if self.settings.train.privacy.on else None

    def batches(self) -> data.Batches:
        train = self.settings.train
        if (own := unit_batches(self, self._process())) is not None:
            return own
        batches = data.batches(
            self.corpus.train,
            context=self.settings.row_length,
            batch=self.rows,
            seed=train.seed,
            workers=self.settings.data.workers,
            process=self._process(),
            objective=self.objective,
            repeat=self.settings.policy.iterations,
        )
        if self.reads_reference:
            batches.then = lambda batch: self.references["train"].add(batch)
        if self.settings.distill.teacher is not None and not self.is_policy:
            batches.then = lambda batch: self.teacher.add(batch)
        return batches

    def _process(self) -> tuple[int, int]:
        """Return which part of a batch this process reads; of prompts each reads all."""
        return (0, 1) if self.is_policy else place.own_rows(self.mesh, self.settings.train.batch)

    def judge(self, reference: Any = None) -> Callable[[Any, Any], Loss]:
        """Return the compiled loss (params, batch) -> Loss of preferences, without dropout.

        With the parameters of a reference its metrics hold `kl`, the divergence from it.
        """
        loss, config = objective_loss(self.settings), self.settings.model

        def judged(params: Any, reference: Any, batch: Any) -> Loss:
            found = loss(params, config, batch)
            if reference is None:
                return found
            real = (batch["weights"].sum(-1) > 0).all(axis=1)
            kl = jnp.sum(mean_kl(params, reference, config, batch) * real)
            metrics = {**found.metrics, "kl": kl / jnp.maximum(real.sum(), 1)}
            return found._replace(metrics=metrics)

        step = place.under(self.mesh, jax.jit(judged))
        return lambda params, batch: step(params, reference, batch)

    @cached_property
    def _judge(self) -> Callable[[Any, Any], Loss]:
        """That of validation: only beneath an adapter is a reference in memory anyway."""
        near = self.adapter and self.measures_kl
        return self.judge(self.reference_params if near else None)

    def validate(
        self, state: State, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return the metrics of the validation split, None if told to stop meanwhile."""
        train = self.settings.train
        rows = self._validation(self._process())
        if self.reads_reference:
            rows = map(self.references["valid"].add, rows)
        if self.mesh is not None and not self.is_policy:
            rows = (place.place_batch(self.mesh, batch, train.batch) for batch in rows)
        rows, params = until(stop, rows), self.model_params(state)
        check = place.under(self.mesh, validate)
        try:
            if self.is_policy:
                return self.rollouts.validate(params, rows)
            if self.settings.objective.name in PREFERENCES:
                return validate_loss(self._judge, params, rows)
            if train.quantize is not None:
                params = quantised.rounded(params, self.settings.model, train.quantize)
            return check(params, self.settings.model, rows, self.tokenizer.byte_lengths)
        except StoppedError:
            return None

    def _validation(self, process: tuple[int, int]) -> Iterator[dict[str, Any]]:
        train = self.settings.train
        return data.in_order(
            self.corpus.valid,
            context=self.settings.row_length,
            batch=train.batch,
            limit=train.validate_batches,
            process=process,
            objective=self.objective,
        )

    def ordered_rows(self, split: str) -> Any:
        """Return the rows of a split, read once and in order."""
        shard, context = getattr(self.corpus, split), self.settings.row_length
        return self.objective(shard, context=context, seed=0, ordered=True)

    def sample(self, params: Any) -> list[tuple[str, str]]:
        """Return (prompt, what the model makes of it) for each prompt and example of the config."""
        make = place.under(self.mesh, samples.make)
        return make(self.settings, self.tokenizer, self.corpus, params, self.chat_template)
