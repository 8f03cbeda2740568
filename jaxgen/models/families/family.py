"""What a family of models is: how its Hugging Face settings and weights are called, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from jaxgen import arguments, settings, tree
from jaxgen.config import DType, ModelConfig, Topology
from jaxgen.errors import CheckpointError, ConfigError, nearest

# Settings without effect on logits, which any config.json may hold. Others that a family does not
# know are named in a warning: transformers ignores them as well.
NEUTRAL = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _auto_class _commit_hash _flash_attn_2_enabled
    _model_name_or_path _name_or_path _num_labels architectures attention_dropout
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cls_token_id decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label ignore_keys_at_rope_validation init_std initializer_factor
    initializer_range keys_to_ignore_at_inference label2id label_smoothing language length_penalty
    license loss_type mask_token_id max_length max_sequence_length min_length model_max_length
    model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_past output_scores
    pad_token_id predict_special_tokens prefix pretraining_tp problem_type remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id seq_length suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class tokenizer_name top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_flash_attn
    vocab_size_or_config_json_file
    """.split()
)
# Settings that code beside transformers computes by, whatever the model_type: the values that
# change nothing, or () for those that switch something on. With another value the weights belong
# to a model that is not the family's.
ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "alibi": (),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "clip_qkv": (),
    "embedding_multiplier": (1, None),
    "layer_types": (),
    "logit_scale": (1, None),
    "logits_scaling": (1, None),
    "n_routed_experts": (0, 1, None),
    "normalize_before": (),
    "no_rope_layers": (),
    "num_experts": (0, 1, None),
    "num_local_experts": (0, 1, None),
    "parallel_attn": (),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": (),
    "qk_layernorm": (),
    "residual_multiplier": (1, None),
    "rotary_pct": (1, None),
    "scale_depth": (),
    "scale_emb": (1, None),
    "sliding_window": (),
    "static_position_embeddings": (),
    "use_alibi": (),
    "use_bidirectional_attention": (),
    "use_parallel_residual": (),
    "use_qk_norm": (),
}
# Fields of a ModelConfig that a published config has no word for, and that change no logit.
FREE = (
    "dropout",
    "scores.dropout",
    "experts.balance",
    "experts.balance_over",
    "experts.balance_rate",
    "experts.z",
    "init_std",
    "param_dtype",
    "compute_dtype",
    "remat",
    "unroll",
)
MOST_NAMED = 6  # fields in a message
_OFF: tuple[Any, ...] = (None, False, "", [], {})
MAX_LAYERS, MAX_SIZE = 1000, 20_000_000  # Llama 4 tells a context of 10,485,760 tokens


class LacksError(CheckpointError):
    """A family or file format that can't say all of a config; lost: what, as "field=value"."""

    def __init__(self, name: str, lost: list[str]) -> None:
        more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        super().__init__(f"{name} has no {', '.join(lost[:MOST_NAMED])}{more}")
        self.lost = lost


class Row(NamedTuple):
    """One tensor of theirs: its name, the parameters of ours it holds, and how they lie in it.

    layout: a word for each of its dimensions, each a product of letters of the legend (or "1", or
    "O" for the second axis of a square, or "G" for the queries of a head of keys); several
    parameters follow one another along the dimension that is marked with a star, in each element
    of what is before the star: "N*H" is a query, a key and a value for each head in turn. unless,
    beside: a parameter of ours without which, or with which alone, there is such a tensor; when: a
    field of the config, and the values with which there is.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str
    unless: str | None = None
    beside: str | None = None
    when: tuple[str, ...] = ()


def linear(theirs: str, ours: str | tuple[str, ...], layout: str) -> tuple[Row, ...]:
    """Return the rows of a projection with its biases, where it has any: [out, in] in `layout`."""
    ours = (ours,) if isinstance(ours, str) else ours
    return (
        Row(f"{theirs}.weight", ours, layout),
        Row(f"{theirs}.bias", tuple(f"{path}_bias" for path in ours), layout.split(",")[0]),
    )


def norm(theirs: str, ours: str, layout: str = "D", when: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """Return the rows of a norm's scale and of its bias, where it has one."""
    return (
        Row(f"{theirs}.weight", (f"{ours}/scale",), layout, when=when),
        Row(f"{theirs}.bias", (f"{ours}/bias",), layout, when=when),
    )


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

    def counts(self, head: str) -> bool:
        """Return whether it is read and written for models of a head."""
        return self.heads is None or head in self.heads


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type of transformers.

    prefix: what the names of a model without a head lack. layer: what comes before the names of
    `layer_rows`, {} for the number. sizes: our field -> their key. choices: fields of ours that
    all of the family share. defaults: what transformers takes for a key that config.json leaves
    out. aliases: other names that it takes for a key; inherited: the key whose value one has that
    is absent or null. only: their keys of which we know these values alone; the first is written.
    other_rows: of a layer, as
    some files have them in place of those with the same parameters. copies: tensors
    that some files hold although they are another one. heads: architectures beside the first, and
    the heads they have. towers: those that are one tower of two. moved: the prefix of models with a
    certain head, if
    another. labels: classes where config.json tells no number. compute: the compute_dtype of a
    param_dtype, where its own range is too small for the hidden states. absent: what is written
    for special tokens that a model lacks, if transformers wants a number. Fields in a group
    of ours have names with dots, such as rope.theta. library: what computes the
    same; a folder of another than transformers is written only if its family is named. renamed:
    other beginnings of names in files of several models, and patterns of what is left out of these,
    see `multimodal`. flat: from a config.json with parts to one without them, which it leaves
    alone; deep: the way back. called: their keys as a file of another format calls them, for
    messages.
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
    towers: Mapping[str, Topology] = field(default_factory=dict)
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

    def topology(self, architecture: str) -> Topology:
        """Return the towers that a model of an architecture has."""
        return self.towers.get(architecture, self.choices.get("topology", "decoder"))

    def head_of(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that config.json's architectures stand for."""
        heads = {self.architecture: "lm"} | dict(self.heads)
        named = theirs.get("architectures") or [self.architecture]
        if not isinstance(named, list) or len(named) != 1 or named[0] not in heads:
            known = ", ".join(heads)
            raise CheckpointError(f"architectures={named!r:.80} is not known here; known: {known}")
        head = heads[named[0]]
        fields = {"head": head}
        if named[0] in self.towers:
            fields["topology"] = self.towers[named[0]]
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
        named = [n for n, h in heads.items() if h == head and self.topology(n) == towers]
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
            if head in wanted and self.topology(name) == config.topology
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
        for key in self.sizes.values():
            if key not in full:
                # A key that is known is itself, and no other's misspelling.
                hint = nearest(key, theirs.keys() - self._known())
                raise CheckpointError(f"{self.called.get(key, key)!r} is missing{hint}")
        for key, known in self.only.items():
            if key in full and full[key] not in known:
                words = " or ".join(map(repr, known))
                name = self.called.get(key, key)
                raise CheckpointError(f"{name}={full[key]!r} is not known here; known is {words}")
        fields = {
            **self.choices,
            **self.head_of(theirs),
            **{ours: full[key] for ours, key in self.sizes.items()},
        }
        self._check_sizes(fields)
        if self._is_encoder(fields.get("topology", "decoder")):
            fields["layers"] = fields.pop("encoder_layers")
        head = fields["head"]
        for quirk in self.quirks:
            fields |= quirk.read(full) if quirk.counts(head) else {}
        try:
            grouped = {name.replace(".", "/"): value for name, value in fields.items()}
            return settings.build(ModelConfig, tree.unflatten(grouped))
        except ConfigError as error:
            raise CheckpointError(f"it makes no model: {error}") from error

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Return the settings of a config.json; CheckpointError if the family can't say it all."""
        theirs = {key: known[0] for key, known in self.only.items()}
        full = resolved(config)
        theirs |= {key: value_of(full, ours) for ours, key in self.sizes.items()}
        if self._is_encoder(full.topology):
            theirs[self.sizes["encoder_layers"]] = full.layers
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

    def _known(self) -> set[str]:
        known = {*self.sizes.values(), *self.aliases, *self.only, *self.ignored, *NEUTRAL}
        return known | {key for quirk in self.quirks for key in quirk.keys}

    def _refuse_others(self, theirs: Mapping[str, Any]) -> None:
        for key in ("quantization_config", "quantization"):  # the latter in MLX's folders
            if theirs.get(key) is not None:
                raise CheckpointError(f"{key}: quantised weights are not read")
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

    def _is_encoder(self, topology: str) -> bool:
        """Return whether that is the encoder of a family of two towers, by itself."""
        return topology == "encoder" and "encoder_layers" in self.sizes

    def _check_sizes(self, fields: Mapping[str, Any]) -> None:
        for ours, key in self.sizes.items():
            value, most = fields[ours], MAX_LAYERS if ours == "layers" else MAX_SIZE
            name = self.called.get(key, key)
            if type(value) is int and value > most:
                raise CheckpointError(f"{name}={value} is more than the {most} that are read")
            if type(value) is bool or not isinstance(value, int | float | None):
                raise CheckpointError(f"{name}={value!r:.60} is no number")


def value_of(config: ModelConfig, field: str) -> Any:
    """Return a field of a config, or one of its groups, as "rope.theta".

    Raises CheckpointError where the config has no such group: no family that needs it can say it.
    """
    value: Any = config
    for name in field.split("."):
        if value is None:
            raise CheckpointError(f"the config has no {field.rpartition('.')[0]}, so no {field}")
        value = getattr(value, name)
    return value


def resolved(config: ModelConfig) -> ModelConfig:
    """Return a config whose derived sizes and layer kinds are written out."""
    kinds = tuple(config.pattern[i % len(config.pattern)] for i in range(config.layers))
    kinds = config.pattern if config.layer_weights == "shared" else kinds
    there = {name: kind for name, kind in config.kinds.items() if name in kinds}
    window = config.window if any(config.reach(kind) != "all" for kind in kinds) else None
    scores, head_layer = config.scores, replace(config.head_layer, kind=config.head_kind)
    experts = config.experts
    if scores.multiplier is None:
        scores = replace(scores, query_scalar=float(scores.query_scalar or config.H))
    per_layer = config.per_layer
    if per_layer is not None and config.vocab_size is not None:
        per_layer = replace(per_layer, vocab_size=per_layer.vocab_size or config.V)
    if config.head_kind != "none":
        head_layer = replace(head_layer, activation=config.head_activation)
    return config.replace(
        encoder_layers=(
            config.encoder_layers or config.layers if config.topology == "encoder_decoder" else None
        ),
        kv_heads=config.K,
        head_dim=config.H,
        d_ff=config.F,
        scores=scores,
        experts=replace(experts, d_ff=experts.width(config.F)) if experts.number else experts,
        pattern=config.pattern if experts.first_dense else kinds,
        kinds=there,
        window=window,
        head_layer=head_layer,
        per_layer=per_layer,
    )


def differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Return "field=value" of `one` where the two compute different logits."""
    rows = settings.diff(resolved(one), resolved(other))
    return [f"{key}={value!s:.60}" for key, value, _ in rows if key not in FREE]
