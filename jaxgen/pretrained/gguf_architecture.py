"""What an architecture of GGUF files is: a family of transformers under other names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxgen.models.families import FAMILIES
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row
from jaxgen.pretrained import gguf_rows as rows
from jaxgen.pretrained.gguf_keys import ABSENT, EPSILONS, ONLY, SIZES, Json, Rule

# Tensors that say what the config says, or that nothing computes by.
IGNORED = (
    *("rope_freqs.weight", "blk.*.attn_rot_embd.weight", "blk.*.rope_freqs.weight"),
    *(f"rope_factors_{length}.weight" for length in ("long", "short")),
    "dec.blk.*.cross_attn_rel_b.weight",
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a general.architecture is in transformers.

    family: its model_type. when: whether a file, by its keys and the names of its tensors, is of
    this one of several families that share a name. tables: the rows outside of layers. keys:
    further GGUF keys, by their key of config.json; rules: others. absent: what llama.cpp takes for
    keys that a file lacks, see `ABSENT`; only: see `ONLY`. settings: what config.json says of all
    of its models. rows: the norms and sublayers of a layer; other_rows: as some files have them in
    place of those with the same parameters. layer: what comes before the names of `rows`, {} for
    the number; encoder: before those of `encoder_rows`. turned: queries and keys have the two
    halves of a head interleaved, as the rotation of the first Llama wants it. offset: what is added
    to the scales of norms. tied: the output is the embedding's table where the file has none,
    unless settings say that it always or never is. flags: keys of config.json that say whether a
    file has a tensor. share: the key of the share of a
    head that turns. gains: keys of longrope's factor of rotated queries and keys. counted: keys
    that are the rows of a tensor. unread: patterns of tensors that files have and no model reads.
    written: whether we write such files.
    """

    name: str
    family: str
    when: Callable[[Json, Collection[str]], bool] = lambda meta, tensors: True
    tables: tuple[Row, ...] = rows.ROWS
    rows: tuple[Row, ...] = rows.PRE + rows.SUBLAYERS
    other_rows: tuple[Row, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    absent: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer: str = "blk.{}."
    encoder: str = ""
    encoder_rows: tuple[Row, ...] = ()
    turned: bool = False
    offset: float = 0.0
    tied: bool = True
    flags: Mapping[str, str] = field(default_factory=dict)
    share: str | None = "partial_rotary_factor"
    gains: tuple[str, ...] = ("attention_factor",)
    counted: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    written: bool = True

    def config_keys(self) -> dict[str, str]:
        """Return {GGUF key, less the architecture's name: key of config.json}."""
        family: Family = FAMILIES[self.family]
        there = {key: family.sizes[ours] for ours, key in SIZES.items() if ours in family.sizes}
        if (epsilon := family.sizes["norm_epsilon"]) not in self.keys.values():
            there[EPSILONS[family.choices["norm"]]] = epsilon
        if "rope_theta" in family.defaults:
            there["rope.freq_base"] = "rope_theta"
        return {k: v for k, v in {**there, **self.keys}.items() if k not in self.ruled()}

    def ruled(self) -> set[str]:
        """Return the keys of its rules."""
        return {key for rule in self.rules for key in rule.keys}

    def filled(self, meta: Json) -> Json:
        """Return a file's keys with what llama.cpp takes for absent ones.

        Raises ValueError for a required key that is absent, and one of another value than is known.
        """
        full = {key: value for key, value in meta.items() if value or not key.endswith("scale")}
        for key, default in {**ABSENT, **self.absent}.items():
            value = default(full) if callable(default) else default
            if value is not None or not callable(default):
                full.setdefault(key, value)
        for key in (*self.config_keys(), *self.ruled()):
            if key not in full:
                raise ValueError(f"'{self.name}.{key}' is missing")
        for key, (default, expected) in {**ONLY, **self.only}.items():
            value = full.get(key, default)
            if value != expected:
                absent = "" if key in full else ", which llama.cpp takes where the key is absent,"
                raise ValueError(
                    f"{self.name}.{key}={value!r:.40}{absent} is not known here; known is "
                    f"{expected!r}"
                )
        return full

    def named_family(self) -> Family:
        """Return its family with the names that tensors have in GGUF files."""
        return replace(
            FAMILIES[self.family],
            prefix="",
            layer=self.layer,
            encoder=self.encoder,
            rows=self.tables,
            layer_rows=self.rows,
            encoder_rows=self.encoder_rows,
            other_rows=self.other_rows,
            head_rows={},
            moved={},
            copies={},
            ignored_tensors=IGNORED + self.unread,
        )
