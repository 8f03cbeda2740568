"""What a family of models is: how its Hugging Face settings and weights are called, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from jaxgen import arguments, settings, tree
from jaxgen.config import DType, ModelConfig, Topology
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.models.families.known_settings import (
    COMPRESSED,
    ELSEWHERE,
    NEUTRAL,
    check_numbers,
    odd_values,
)
from jaxgen.models.families.resolved import LacksError, differences, resolved, value_of
from jaxgen.models.families.rows import Row
from jaxgen.models.families.wording import in_their_words

_OFF: tuple[Any, ...] = (None, False, "", [], {})
ENCODER = "towers.encoder_"  # how fields of a tower begin that are the encoder's alone
MAX_LAYERS, MAX_SIZE = 1000, 20_000_000  # Llama 4 tells a context of 10,485,760 tokens


class Quirk(NamedTuple):
    """Settings of theirs that are not one setting of ours under another name.

    read: from their settings, defaults filled in, to fields of ours. write: the way back.
    ignored: of nested settings, those that transformers reads no more than we do. heads: with
    which it counts, if not with all.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    ignored: Callable[[Mapping[str, Any]], list[str]] = lambda theirs: []
    heads: tuple[str, ...] | None = None

    def refusals(self, theirs: Mapping[str, Any]) -> list[str]:
        """Return why it can't be read, if it can't."""
        try:
            self.fields(theirs)
        except CheckpointError as error:
            return [str(error)]
        return []

    def fields(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of ours; CheckpointError for settings that are no such, or missing."""
        try:
            return self.read(theirs)
        except KeyError as error:
            raise CheckpointError(f"{error} is missing") from error

    def counts(self, head: str) -> bool:
        """Return whether it is read and written for models of a head."""
        return self.heads is None or head in self.heads


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type of transformers.

    prefix: what the names of a model without a head lack. layer: what comes before the names of
    `layer_rows`, {} for the number; of weights that layers share, that of their set and of the
    layer in it. sizes: our field -> their key. choices: fields of ours that all of the family
    share. defaults: what transformers takes for a key that config.json leaves out. aliases: other
    names that it takes for a key; inherited: the key whose value one has that is absent or null.
    only: their keys of which we know these values alone; the first is written. other_rows: of a
    layer, as some files have them in place of those with the same parameters. copies: tensors that
    some files hold although they are another one. heads: architectures beside the first, and the
    heads they have. towers: those that are one tower of two; None: one or both, by a quirk. moved:
    the prefix of models with a certain head, if another. labels: classes where config.json tells no
    number. compute: the compute_dtype of a param_dtype, where its own range is too small for the
    hidden states. absent: what is written for special tokens that a model lacks, if transformers
    wants a number. Fields in a group of ours have names with dots, such as rope.theta. library:
    what computes the same; a folder of another than transformers is written only if its family is
    named. renamed: other beginnings of names in files of several models, and patterns of what is
    left out of these, see `multimodal`. flat: from a config.json with parts to one without them,
    which it leaves alone; deep: the way back. called: their keys as a file of another format calls
    them, for messages.
    """

    model_type: str
    architecture: str
    prefix: str
    layer: str
    sizes: Mapping[str, str]
    choices: Mapping[str, Any]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    quirks: tuple[Quirk, ...]
    rows: tuple[Row, ...]
    layer_rows: tuple[Row, ...]
    other_rows: tuple[Row, ...] = ()
    ignored_tensors: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    towers: Mapping[str, Topology | None] = field(default_factory=dict)
    head_rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    labels: int = 2
    compute: Mapping[DType, DType] = field(default_factory=dict)
    absent: Mapping[str, int] = field(default_factory=dict)
    library: Literal["transformers", "torch"] = "transformers"
    encoder: str = ""
    encoder_rows: tuple[Row, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    flat: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    deep: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    called: Mapping[str, str] = field(default_factory=dict)

    def can_be(self, architecture: str, topology: Topology) -> bool:
        """Return whether a model of an architecture can have these towers."""
        own = self.towers.get(architecture, self.choices.get("topology", "decoder"))
        return own in (None, topology)

    def head_of(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that config.json's architectures stand for."""
        heads = {self.architecture: "lm"} | dict(self.heads)
        named = theirs.get("architectures") or [self.architecture]
        if not isinstance(named, list) or len(named) != 1 or named[0] not in [*heads]:
            known = ", ".join(heads)
            raise CheckpointError(f"architectures={named!r:.80} is not known here; known: {known}")
        head = heads[named[0]]
        fields = {"head": head}
        if tower := self.towers.get(named[0]):
            fields["topology"] = tower
        if head not in ("classes", "token_classes"):
            return fields
        labels = theirs.get("id2label")
        count = len(labels) if isinstance(labels, dict) else theirs.get("num_labels", self.labels)
        return {**fields, "classes": count}

    def as_head(self, theirs: Mapping[str, Any], head: str) -> Mapping[str, Any]:
        """Return a config.json as that of the family's class with another head, if it has one."""
        own = self.head_of(theirs)
        towers = own.get("topology", self.choices.get("topology", "decoder"))
        heads = {self.architecture: "lm"} | dict(self.heads)
        named = [n for n, h in heads.items() if h == head and self.can_be(n, towers)]
        if own["head"] == head or not named:
            return theirs
        return {**theirs, "architectures": named[:1]}

    def write_head(self, config: ModelConfig) -> dict[str, Any]:
        """Return the settings that name the head; CheckpointError if the family has none such."""
        heads = {self.architecture: "lm"} | dict(self.heads)
        # A model without its pooler is of the class of one with it.
        wanted = {config.head, "pooled"} if config.head == "none" else {config.head}
        named = [
            name
            for name, head in heads.items()
            if head in wanted and self.can_be(name, config.topology)
        ]
        if not named:
            raise CheckpointError(
                f"{self.model_type} has no topology={config.topology} with head={config.head}"
            )
        theirs: dict[str, Any] = {"architectures": named[:1], "model_type": self.model_type}
        if config.classes is not None:
            labels = [f"LABEL_{i}" for i in range(config.classes)]
            theirs["id2label"] = {str(i): label for i, label in enumerate(labels)}
            theirs["label2id"] = {label: i for i, label in enumerate(labels)}
        return theirs

    def as_in(self, names: Collection[str]) -> Family:
        """Return the family with those of its rows that files with tensors of these names have."""
        others = [r for r in self.other_rows if any(n.endswith(f".{r.theirs}") for n in names)]
        held = {path for row in others for path in row.ours}
        rows = (row for row in self.layer_rows if held.isdisjoint(row.ours))
        return replace(self, layer_rows=(*rows, *others))

    def read(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Return the ModelConfig of a config.json.

        Raises CheckpointError that names a setting which is missing, wrong or not known.
        """
        theirs = self.flat(theirs)
        self._refuse_others(theirs)
        full = self._filled(theirs)
        self._check_values(full, theirs)
        fields = {
            **self.choices,
            **self.head_of(theirs),
            **{ours: full[key] for ours, key in self.sizes.items()},
        }
        sources: dict[str, tuple[str, ...]] = {ours: (key,) for ours, key in self.sizes.items()}
        head = fields["head"]
        for quirk in self.quirks:
            own = quirk.fields(full) if quirk.counts(head) else {}
            fields |= own
            sources |= dict.fromkeys(own, quirk.keys)
        if fields.get("topology") == "encoder":
            fields, sources = _of_encoder(fields), _of_encoder(sources)
        try:
            grouped = {name.replace(".", "/"): value for name, value in fields.items()}
            return settings.build(ModelConfig, tree.unflatten(grouped))
        except ConfigError as error:
            reason = in_their_words(str(error), sources, full, self.called)
            raise CheckpointError(f"it makes no model: {reason}") from error

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Return the settings of a config.json; CheckpointError if the family can't say it all."""
        theirs = {key: known[0] for key, known in self.only.items()}
        full = resolved(config)
        theirs |= {key: value_of(full, ours) for ours, key in self.sizes.items()}
        if full.topology == "encoder":
            own = {o.removeprefix(ENCODER): k for o, k in self.sizes.items() if ENCODER in o}
            theirs |= {key: value_of(full, ours) for ours, key in own.items()}
        for quirk in self.quirks:
            theirs |= quirk.write(full) if quirk.counts(full.head) else {}
        theirs = {**self.write_head(full), **theirs}
        again = self.read(theirs)
        if (config.head, again.head) == ("none", "pooled"):
            again = again.replace(head="none")
        if lost := differences(config, again):
            raise LacksError(self.model_type, lost)
        return self.deep(theirs)

    def ignored_settings(self, theirs: Mapping[str, Any]) -> list[str]:
        """Return "key=value" of the settings that the family does not know, nor transformers."""
        theirs, known = self.flat(theirs), self._known()
        # What is off changes nothing, even where we don't know what it is.
        odd = {k: v for k, v in theirs.items() if k not in known and v not in _OFF}
        absent = known - theirs.keys() - NEUTRAL
        found = [f"{key}={value!r:.40}{nearest(key, absent)}" for key, value in odd.items()]
        full = self._filled(theirs)
        return found + [name for quirk in self.quirks for name in quirk.ignored(full)]

    def odd_settings(self, theirs: Mapping[str, Any]) -> list[str]:
        """Return "key=value" of settings without effect here whose values mean nothing."""
        theirs, head = self.flat(theirs), self.head_of(theirs)["head"]
        full = self._filled(theirs)
        odd = odd_values(theirs, full[self.sizes["vocab_size"]])
        read = {key for quirk in self.quirks if quirk.counts(head) for key in quirk.keys}
        unread = [q for q in self.quirks if not q.counts(head) and read.isdisjoint(q.keys)]
        return odd + [reason for quirk in unread for reason in quirk.refusals(full)]

    def _known(self) -> set[str]:
        known = {*self.sizes.values(), *self.aliases, *self.only, *self.ignored, *NEUTRAL}
        return known | {key for quirk in self.quirks for key in quirk.keys}

    def _refuse_others(self, theirs: Mapping[str, Any]) -> None:
        for key in ("quantization_config", "quantization"):  # the latter in MLX's folders
            method = (theirs.get(key) or {}).get("quant_method")
            if theirs.get(key) is not None and method not in COMPRESSED:
                raise CheckpointError(
                    f"{key}: quantised weights are not read, but of quant_method={COMPRESSED[0]} "
                    f"(here {method}); give the model before it was quantised, or a GGUF file of it"
                )
        check_numbers(theirs)
        known = self._known()
        causal = theirs.get("is_causal")
        if causal is not None and causal is not (self.choices.get("topology") is None):
            raise CheckpointError(
                f"is_causal={causal!r:.60} is not what {self.model_type} is; remove it if it has "
                f"no effect"
            )
        for key, value in theirs.items():
            neutral = ELSEWHERE.get(key)
            if key in known or neutral is None or value in (neutral or _OFF):
                continue
            raise CheckpointError(
                f"{key}={value!r:.60} is not known for {self.model_type}, and other models compute "
                f"by it, so logits could differ; remove it if it has no effect"
            )

    def _filled(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Return their settings with defaults, other names of a key taken for it."""
        full = {**self.defaults, **theirs}
        for alias, key in self.aliases.items():
            if theirs.get(alias) is None:
                continue
            full[key] = theirs[alias]
            if theirs.get(key, theirs[alias]) != theirs[alias]:
                raise CheckpointError(
                    f"{alias}={theirs[alias]!r:.40} but {key}={theirs[key]!r:.40}: they are two "
                    f"names of one setting; remove the wrong one"
                )
        for key, other in self.inherited.items():
            if full.get(key) is None and other in full:
                full[key] = full[other]
        return full

    def _check_values(self, full: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        """Raise CheckpointError for sizes that are missing or none, and for values not known."""
        for ours, key in self.sizes.items():
            name = self.called.get(key, key)
            if key not in full:
                # A key that is known is itself, and no other's misspelling.
                hint = nearest(key, theirs.keys() - self._known())
                raise CheckpointError(f"{name!r} is missing{hint}")
            value, most = full[key], MAX_LAYERS if ours.endswith("layers") else MAX_SIZE
            if type(value) is int and value > most:
                raise CheckpointError(f"{name}={value} is more than the {most} that are read")
            # Without them other sizes would be made up, where the family has no rule for it.
            made_up = ours in ("vocab_size", "d_ff") and self.defaults.get(key, key) is not None
            numbers = int | float if made_up else int | float | None
            if type(value) is bool or not isinstance(value, numbers):
                raise CheckpointError(f"{name}={value!r:.60} is no number")
        for key, known in self.only.items():
            if key in full and full[key] not in known:
                words = " or ".join(map(repr, known))
                name = self.called.get(key, key)
                raise CheckpointError(f"{name}={full[key]!r} is not known here; known is {words}")


def _of_encoder(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of the fields of two towers as that of the encoder by itself."""
    own = {name.removeprefix(ENCODER): value for name, value in fields.items() if ENCODER in name}
    return {name: value for name, value in fields.items() if not name.startswith("towers.")} | own
