"""All of a config file as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jaxgen import arguments, files, settings_yaml
from jaxgen import settings as sets
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.config import ModelConfig
from jaxgen.data.augment.rows import check as check_augment
from jaxgen.data.labels import labels_of
from jaxgen.data.objectives.settings import CHATS, PREFERENCES, ObjectiveSettings
from jaxgen.data.settings import DataSettings
from jaxgen.data.sources import absolute
from jaxgen.errors import ConfigError
from jaxgen.mesh import settings as meshes
from jaxgen.mesh.settings import MeshSettings
from jaxgen.models import presets
from jaxgen.pretrained import sources
from jaxgen.pretrained.generation_config import read_generation_config
from jaxgen.run import rewards
from jaxgen.run.check_distill import check_distill
from jaxgen.run.check_private import check_federated, check_private
from jaxgen.run.objective import rows_needed, start_of
from jaxgen.settings import option
from jaxgen.store.settings import CheckpointSettings
from jaxgen.store.steps import run_and_step
from jaxgen.text.request import Generation
from jaxgen.tokens.protocol import Tokenizer
from jaxgen.tokens.settings import TokenizerSettings
from jaxgen.train import adversarial, quantised
from jaxgen.train.settings import (
    UNPAIRED,
    DistillSettings,
    PolicySettings,
    PreferenceSettings,
    TrainSettings,
)

# What may change when a run goes on: none of it touches a parameter. The text itself is known by
# its digest, so that its files may move.
FREE = (
    *("mesh.", "checkpoint.", "sample.", "data.", "train.log_every", "train.validate_every"),
    *("train.validate_batches", "train.early_stopping", "train.track"),
)
BOUND = ("data.augment",)  # but for these
# What decides of the steps to come alone, and may change where a run is told to go on.
ONWARD = (
    *("train.steps", "train.epochs", "train.learning_rate", "train.schedule", "train.warmup"),
    *("train.decay", "train.final_rate", "train.beta1", "train.beta2", "train.epsilon"),
    *("train.weight_decay", "train.no_decay", "train.clip", "train.smoothing", "train.z_loss"),
    *("train.loss_chunk", "train.spike", "train.patience", "train.accumulate"),
    *("model.remat", "model.unroll", "model.dropout", "model.scores.dropout"),
    "model.compute_dtype",
)


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Prompts and sampling of the texts shown at each validation."""

    prompts: tuple[str, ...] = option(
        "texts to go on from, rewrite, classify or (at <mask>) fill in; none: no samples", ()
    )
    examples: int = option("pairs, chat, policy: so many prompts of the validation text", 0)
    max_new_tokens: int = option("new tokens per prompt; the context may leave fewer", 64)
    temperature: float = option("0 is greedy", 0.8)
    top_k: int | None = option("keep the k likeliest tokens", None)
    top_p: float | None = option("keep the smallest set of this probability", 0.95)

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError(f"examples={self.examples} must be 0 or more")
        if any(not prompt for prompt in self.prompts):
            raise ConfigError("prompts holds an empty prompt; remove it")
        self.request(seed=0)

    def request(self, seed: int) -> Generation:
        """Return the settings of a sample's request; ConfigError if one of them can't be."""
        return Generation(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of a config file; `model.preset` is resolved before it gets here."""

    init_from: Path | None = option(
        "a run, a Hugging Face folder or ORG/NAME of the hub: its weights, sizes, tokenizer",
        None,
    )
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    distill: DistillSettings = field(default_factory=DistillSettings)

    def __post_init__(self) -> None:
        self.objective.check_model(self.model.topology, self.model.head)
        if self.model.prompt == "both" and self.objective.name != "prefix":
            raise ConfigError(
                f"model.prompt=both needs objective.name=prefix, which says what the prompt is, "
                f"not {self.objective.name}"
            )
        if self.model.vision is not None:
            raise ConfigError(
                "model.vision is given, but no objective of a run reads images, so its tower would "
                "learn nothing; give a model of texts alone"
            )
        self._check_adapter()
        self._check_preference()
        self._check_policy()
        check_distill(self)
        quantised.check(self.train.quantize, self.model, self.adapter.kind, self.objective.name)
        check_private(self)
        check_federated(self)
        adversarial.check(self)
        check_augment(self)
        kind = self.tokenizer.kind
        if kind == "init" and self.init_from is None:
            raise ConfigError("tokenizer.kind=init needs init_from: a folder with a tokenizer")
        if self.init_from is not None and kind in ("bpe", "unigram", "chars"):
            raise ConfigError(
                f"tokenizer.kind={kind} makes new ids, which the weights of "
                f"init_from={self.init_from} don't know; leave out the tokenizer section"
            )
        if self.tokenizer.dropout and self.objective.name in CHATS:
            raise ConfigError(
                f"tokenizer.dropout={self.tokenizer.dropout} has no effect on chats, whose marks "
                f"stay whole; remove it"
            )

    @property
    def row_length(self) -> int:
        """Tokens of a row of text: the model's context, less an adapter's virtual ones."""
        return self.model.context - self.adapter.num_virtual

    def _check_adapter(self) -> None:
        kind = self.adapter.kind
        if kind == "none":
            return
        if self.init_from is None:
            raise ConfigError(
                f"adapter.kind={kind} needs init_from: the model that it stands beside, which is "
                f"not trained itself"
            )
        if self.mesh.form != "jit":
            raise ConfigError(f"adapter.kind={kind} needs mesh.form=jit, not {self.mesh.form}")
        if self.train.freeze:
            raise ConfigError(
                f"train.freeze={list(self.train.freeze)} has no effect with adapter.kind={kind}, "
                f"beside which all is frozen; leave it out"
            )
        if self.train.zeros:
            raise ConfigError(
                f"train.zeros={list(self.train.zeros)} has no effect with adapter.kind={kind}: "
                f"what it adds to the weights has no zeros; train all of the model"
            )
        if self.row_length < 2:
            raise ConfigError(
                f"adapter.tokens={self.adapter.tokens} leave no room for a text in "
                f"model.context={self.model.context}; give fewer"
            )
        if (base := self.adapter.base) != "plain" and self.model.experts.number:
            raise ConfigError(f"adapter.base={base} with experts is not trained; use base=plain")

    def _check_preference(self) -> None:
        name, preference = self.objective.name, self.preference
        if name == "feedback" and preference.loss not in UNPAIRED:
            if preference == PreferenceSettings():  # what is not said
                object.__setattr__(self, "preference", PreferenceSettings(loss="kto"))
                return
            raise ConfigError(
                f"preference.loss={preference.loss} is of pairs; with objective.name=feedback give "
                f"{' or '.join(UNPAIRED)}"
            )
        if name == "preferences" and preference.loss in UNPAIRED:
            raise ConfigError(
                f"preference.loss={preference.loss} is of single completions; set "
                f"objective.name=feedback, or give another loss"
            )
        used = name in PREFERENCES
        if not used and preference != PreferenceSettings():
            raise ConfigError(f"the preference section has no effect with objective.name={name}")
        if name == "rewards" and (self.model.classes != 1 or self.train.smoothing):
            raise ConfigError(
                f"objective.name=rewards needs model.classes=1, a reward of a text, not "
                f"{self.model.classes}; and train.smoothing=0"
            )
        if name == "rewards" and preference != PreferenceSettings(center=preference.center):
            raise ConfigError("of preference, objective.name=rewards reads center alone")
        if name != "rewards" and preference.center:
            raise ConfigError(
                f"preference.center={preference.center} is of reward models: objective.name=rewards"
            )
        if (used or name == "policy") and (self.train.smoothing or self.train.z_loss):
            raise ConfigError(
                f"train.smoothing and train.z_loss have no effect with objective.name={name}; "
                f"remove them"
            )

    def _check_policy(self) -> None:
        policy, train = self.policy, self.train
        if self.objective.name != "policy":
            if policy != PolicySettings():
                raise ConfigError(
                    f"the policy section has no effect with objective.name={self.objective.name}"
                )
            return
        self.objective.completion(self.row_length)
        if train.batch % policy.group:
            raise ConfigError(
                f"train.batch={train.batch} is not a multiple of policy.group={policy.group}, the "
                f"completions of a prompt"
            )
        steps = {"checkpoint.every": self.checkpoint.every}
        steps |= {"train.steps": train.steps} if train.epochs is None else {}
        for name, value in {**steps, "train.validate_every": train.validate_every}.items():
            if value != "epoch" and value % policy.iterations:
                raise ConfigError(
                    f"{name}={value} is not a multiple of policy.iterations={policy.iterations}, "
                    f"within which a run can't be saved"
                )


def read_settings(config: Path, assignments: Sequence[str] = ()) -> Settings:
    """Return the Settings of a YAML file with "section.key=value" overrides; ConfigError if bad.

    Files that are given take the place of the config's corpus.
    """
    mapping = settings_yaml.read_yaml(config)
    given = [word.partition("=")[0].strip() for word in assignments]
    own = mapping.get("data")
    if "data.files" in given and "data.corpus" not in given and isinstance(own, dict):
        own.pop("corpus", None)
    return build_settings(sets.override(mapping, assignments))


def build_settings(mapping: Mapping[str, Any]) -> Settings:
    """Return Settings from a mapping; model may name a preset, mesh be short ("data:2,fsdp:4").

    With init_from, what the model section leaves out is what that folder's model has, and the
    tokenizer is its own.
    """
    mapping = _from_initial(mapping)
    model = mapping.get("model")
    if isinstance(model, Mapping) and "preset" in model:
        own = {name: value for name, value in model.items() if name != "preset"}
        own = ModelConfig.regrouped(own)
        named = sets.as_dict(presets.preset(model["preset"]))
        named = {name: named[name] for name in presets.fields(model["preset"])}
        mapping = {**mapping, "model": _over(named, own)}
    if isinstance(mapping.get("mesh"), str):
        mapping = {**mapping, "mesh": meshes.parse(mapping["mesh"])}
    return sets.build(Settings, mapping)


def _from_initial(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    folder, model = mapping.get("init_from"), mapping.get("model") or {}
    if not isinstance(folder, str | Path) or not isinstance(model, Mapping):
        return mapping
    folder = sources.find(folder) or folder
    mapping = {**mapping, "init_from": str(folder)}
    if mapping.get("tokenizer") is None:
        mapping = {**mapping, "tokenizer": {"kind": "init"}}
    # All of a resolved config is there already, so that a run goes on without the folder.
    if {f.name for f in fields(ModelConfig)} <= model.keys():
        return mapping
    from jaxgen.run import initial

    begun = initial.fields(files.to_path(folder), model.get("head"))
    return {**mapping, "model": _over(begun, ModelConfig.regrouped(model))}


def _over(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of which `other` has the last word, in groups setting by setting."""
    both = {k for k in other if isinstance(other[k], Mapping) and isinstance(one.get(k), Mapping)}
    return {**one, **other, **{name: _over(one[name], other[name]) for name in both}}


def resolve(settings: Settings, tokenizer: Tokenizer) -> Settings:
    """Return the settings with what was left open filled in: vocabulary, ids, absolute paths.

    Raises ConfigError if the model's vocabulary is smaller than the tokenizer's and the ids that
    the objective adds; a larger one is a choice (rows padded to a round number).
    """
    settings = _resolve_initial(settings, tokenizer)
    wanted, needed = settings.model.vocab_size, rows_needed(settings.objective, tokenizer)
    if wanted is not None and wanted < needed:
        more = needed - tokenizer.vocab_size
        raise ConfigError(
            f"model.vocab_size={wanted} is smaller than the tokenizer's {tokenizer.vocab_size}"
            f"{f' and {more} of objective.name={settings.objective.name}' if more else ''}; "
            f"leave it null or give at least {needed}"
        )
    objective = settings.objective
    if objective.starts(settings.model.topology) and objective.start is None:
        objective = replace(objective, start=start_of(tokenizer))
    globs = {
        name: tuple(absolute(glob, settings.data.sides) for glob in getattr(settings.data, name))
        for name in ("files", "valid_files", "test_files")
    }
    model, teacher = settings.model.replace(vocab_size=wanted or needed), settings.distill.teacher
    if objective.name == "classes" and not objective.labels:
        objective = replace(objective, labels=labels_of(settings.data))
    if objective.name == "classes" and model.classes != len(objective.labels):
        raise ConfigError(
            f"model.classes={model.classes}, but there are {len(objective.labels)} classes: "
            f"{', '.join(objective.labels[:8])}"
        )
    return replace(
        settings,
        model=model,
        data=replace(settings.data, **globs),
        objective=objective,
        policy=replace(settings.policy, reward=rewards.absolute(settings.policy.reward)),
        distill=replace(
            settings.distill,
            teacher=teacher and sources.local_path(teacher).absolute(),
            keep=settings.distill.keep and settings.distill.keep.absolute(),
        ),
    )


def _resolve_initial(settings: Settings, tokenizer: Tokenizer) -> Settings:
    if settings.init_from is None:
        return settings
    folder, objective = settings.init_from.absolute(), settings.objective
    settings = replace(settings, init_from=folder)
    if not folder.exists():  # a run that has begun needs it no more
        return settings
    from jaxgen.run import initial

    initial.check_tokenizer(folder, tokenizer)
    begun = read_generation_config(run_and_step(folder)[0])[0]
    if (
        objective.starts(settings.model.topology)
        and objective.start is None
        and begun.decoder_start_token_id is not None
    ):
        objective = replace(objective, start=begun.decoder_start_token_id)
    undecided = objective.name == "classes" and not objective.labels and len(begun.labels) > 1
    # A classifier goes on with its own classes, in its own order.
    if undecided and set(labels_of(settings.data)) <= set(begun.labels):
        objective = replace(objective, labels=begun.labels)
    needed = rows_needed(objective, tokenizer)
    size = initial.vocabulary(folder, settings.model.vocab_size, needed)
    return replace(settings, objective=objective, model=settings.model.replace(vocab_size=size))


def differences(
    kept: Settings, asked: Settings, folder: Path, *, onward: bool
) -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) of what is asked for and changes the steps to come.

    onward: whether that may be. Raises ConfigError that shows each field that may not differ.
    """
    found = [
        row for row in sets.diff(kept, asked) if not row[0].startswith(FREE) or row[0] in BOUND
    ]
    later = [row for row in found if row[0] in ONWARD]
    wrong = [row for row in found if not (onward and row in later)]
    if not wrong:
        return later
    shown = "; ".join(f"{key} is {old!r} there, {new!r} here" for key, old, new in wrong[:5])
    more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    go_on = f"or `jaxgen train {folder}` to go on with it as it is"
    if wrong == later and asked.train.steps >= kept.train.steps:
        words = " ".join(f"{key}={new}" for key, _, new in later)
        go_on = f"or `jaxgen train {folder} {words}` to go on with it in this way"
    raise ConfigError(
        f"{folder} holds a run of another config: {shown}{more}; give another --out, {go_on}, or "
        f"--force to begin it anew"
    )
