"""What is done to a model: a few keys in a YAML file, or a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgen import arguments, settings, settings_yaml, tree
from jaxgen.compress.codes import Grid
from jaxgen.errors import ConfigError, nearest
from jaxgen.settings import option

Format = Literal["plain", "int8", "int4", "nf4"]
Method = Literal["round", "gptq", "awq", "smoothquant"]
Prune = Literal["none", "magnitude", "wanda", "sparsegpt"]
GROUPS = (32, 64, 128)
CALIBRATED = ("gptq", "awq", "smoothquant", "wanda", "sparsegpt")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is made smaller; raises ConfigError naming the key at fault."""

    format: Format = option(
        "of the matrices of layers: int8, int4, nf4 (QLoRA's 4 bits); plain: numbers stay", "plain"
    )
    group: int | None = option(
        "inputs that share a scale, 32, 64 or 128; null: all of an output (int8, int4)", None
    )
    symmetric: bool = option("false: a zero point for each group (int4)", True)
    method: Method = option(
        "round: to nearest; gptq (Frantar et al. 2023); awq (Lin et al. 2024); smoothquant (Xiao "
        "et al. 2023)",
        "round",
    )
    act_order: bool = option("gptq: columns with large inputs first", True)
    damping: float = option("gptq, sparsegpt: added share of the mean diagonal", 0.01)
    strength: float = option("smoothquant: share of the inputs' range that weights take", 0.5)
    activations: Literal["plain", "int8"] = option(
        "int8: inputs are rounded as well, token by token (W8A8; int8 by channel)", "plain"
    )
    tables: Literal["plain", "int8"] = option("of tokens: kept, or int8 by row", "plain")
    keep: tuple[str, ...] = option("globs of the paths of matrices that stay as they are", ())
    prune: Prune = option(
        "magnitude; wanda (Sun et al. 2024); sparsegpt (Frantar and Alistarh 2023)", "none"
    )
    pattern: Literal["2:4", "4:8"] | None = option(
        "zeros in each run of inputs; null: anywhere, as many as `sparsity` says", None
    )
    sparsity: float = option("share of zeros without a pattern", 0.5)
    heads: int | None = option("query heads that stay, by importance; null: all", None)
    channels: int | None = option("feed-forward width that stays; null: all", None)
    layers: int | None = option("layers that stay; null: all", None)
    rows: int = option("rows of calibration text", 64)
    length: int = option("tokens of a row", 512)

    def __post_init__(self) -> None:
        if self.group is not None and self.group not in GROUPS:
            raise ConfigError(f"group={self.group} must be one of {', '.join(map(str, GROUPS))}")
        self._check_format()
        for name in ("damping", "strength", "sparsity"):
            if not 0 <= getattr(self, name) < 1 + (name == "strength"):
                raise ConfigError(f"{name}={getattr(self, name)} must be from 0 to below 1")
        for name in ("rows", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.prune == "none" and self.pattern is not None:
            raise ConfigError(
                f"pattern={self.pattern} has no effect with prune=none; name a method"
            )
        if self.prune != "none" and self.method != "round":
            raise ConfigError(
                f"method={self.method} would move the zeros of prune={self.prune}; use method=round"
            )
        kept = self.format == "plain" and self.prune == "none" and self.tables == "plain"
        if kept and not self.shrinks:
            raise ConfigError(
                "the recipe changes nothing; give format, tables, prune, heads, channels or layers"
            )

        has_share = self.prune != "none" and self.pattern is None
        self._check_effect("act_order", self.method == "gptq", f"method={self.method}")
        calm = "gptq" in self.method or self.prune == "sparsegpt"
        self._check_effect("damping", calm, f"method={self.method} and prune={self.prune}")
        self._check_effect("strength", self.method == "smoothquant", f"method={self.method}")
        self._check_effect("sparsity", has_share, f"prune={self.prune}, pattern={self.pattern}")
        for name in ("rows", "length"):
            self._check_effect(name, self.calibrates, "a recipe that looks at no text")

    def _check_effect(self, name: str, used: bool, beside: str) -> None:
        value = getattr(self, name)
        if not used and value != type(self).__dataclass_fields__[name].default:
            raise ConfigError(f"{name}={value} has no effect with {beside}; remove it")

    def _check_format(self) -> None:
        needs = {
            "group": (self.group is not None, ("int8", "int4")),
            "symmetric": (not self.symmetric, ("int4",)),
            "method": (self.method != "round", ("int8", "int4")),
            "activations": (self.activations != "plain", ("int8",)),
        }
        for name, (given, formats) in needs.items():
            if given and self.format not in formats:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is for format={' or '.join(formats)}, but "
                    f"format={self.format}"
                )
        if self.activations == "int8" and self.group is not None:
            raise ConfigError(f"activations=int8 needs one scale an output, but group={self.group}")

    @property
    def grid(self) -> Grid | None:
        """The numbers that its format has; None: of nf4 and plain."""
        bits = {"int8": 8, "int4": 4}.get(self.format)
        return None if bits is None else Grid(bits, self.group, self.symmetric)

    @property
    def zeros(self) -> tuple[int, int] | None:
        """The pattern as numbers: zeros, of how many inputs."""
        return {"2:4": (2, 4), "4:8": (4, 8), None: None}[self.pattern]

    @property
    def shrinks(self) -> bool:
        """Whether the model gets smaller shapes."""
        return any(getattr(self, name) is not None for name in ("heads", "channels", "layers"))

    @property
    def reads_inputs(self) -> bool:
        """Whether matrices are changed by what their inputs are."""
        return self.method in CALIBRATED or self.prune in CALIBRATED

    @property
    def calibrates(self) -> bool:
        """Whether it needs text."""
        return self.reads_inputs or self.shrinks

    def changes(self, path: str) -> bool:
        """Return whether a matrix of layers is quantised or pruned."""
        return not tree.match(path, self.keep) and (self.format != "plain" or self.prune != "none")


PRESETS = {
    "int8": Recipe(format="int8", tables="int8"),
    "int8-g64": Recipe(format="int8", group=64, tables="int8"),
    "w8a8": Recipe(format="int8", method="smoothquant", activations="int8", tables="int8"),
    "int4": Recipe(format="int4", group=64, tables="int8"),
    "int4-gptq": Recipe(format="int4", group=64, method="gptq", tables="int8"),
    "int4-awq": Recipe(format="int4", group=64, method="awq", tables="int8"),
    "int4-g32": Recipe(format="int4", group=32, method="gptq", tables="int8"),
    "nf4": Recipe(format="nf4", tables="int8"),
    "magnitude-2-4": Recipe(prune="magnitude", pattern="2:4"),
    "wanda-2-4": Recipe(prune="wanda", pattern="2:4"),
    "sparsegpt-2-4": Recipe(prune="sparsegpt", pattern="2:4"),
}


def read_recipe(word: str) -> tuple[str, Recipe]:
    """Return (name, recipe) of a preset or a YAML file, with KEY=VALUE after commas if any.

    Keys alone change what a recipe is by default. Raises ConfigError for an unknown name or key.
    """
    name, *assignments = re.split(r",(?=[a-z_]+=)", word)
    if re.match(r"[a-z_]+=", name):
        mapping, assignments = {}, [name, *assignments]
    elif name in PRESETS:
        mapping = settings.as_dict(PRESETS[name])
    elif Path(name).suffix in (".yaml", ".yml"):
        mapping = settings_yaml.read_yaml(Path(name), "recipe")
    else:
        hint = nearest(name, PRESETS) or f"; there are {', '.join(PRESETS)}, or give a .yaml file"
        raise ConfigError(f"--recipe {name}: no such recipe{hint}")
    recipe = settings.build(Recipe, settings.override(mapping, assignments), "recipe")
    first = [] if name in assignments else [name if name in PRESETS else Path(name).stem]
    return ",".join([*first, *assignments]), recipe


def split_recipes(words: str) -> list[str]:
    """Return the recipes of a list with commas, in which keys may follow a name."""
    found: list[str] = []
    for word in filter(None, (part.strip() for part in words.split(","))):
        if re.match(r"[a-z_]+=", word) and found:
            found[-1] += f",{word}"
        else:
            found.append(word)
    if not found:
        raise ConfigError(f"--recipes is empty; name some of {', '.join(PRESETS)}")
    return found
