"""What is done to a model: a few keys in a YAML file, or a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgen import arguments, settings, settings_yaml, tree
from jaxgen.arguments import Range, at_least, between
from jaxgen.errors import ConfigError, nearest
from jaxgen.ops.grid import Grid
from jaxgen.settings import option

Format = Literal["plain", "int8", "int4", "nf4"]
Method = Literal["round", "gptq", "awq", "smoothquant"]
Prune = Literal["none", "magnitude", "wanda", "sparsegpt"]
GROUPS = (32, 64, 128)
FORMATS_OF = {
    "group": ("int8", "int4"), "symmetric": ("int4",), "method": ("int8", "int4"),
    "activations": ("int8",),
}  # fmt: skip
CALIBRATED = ("gptq", "awq", "smoothquant", "wanda", "sparsegpt")


@arguments.checked(
    damping=Range(0, 1, below=True),
    strength=between(0, 1),
    sparsity=Range(0, 1, above=True, below=True),
    rows=at_least(1),
    length=at_least(1),
)
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
        for name, formats in FORMATS_OF.items():
            if self._is_set(name) and self.format not in formats:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is for format={' or '.join(formats)}, but "
                    f"format={self.format}"
                )
        if self.activations == "int8" and self.group is not None:
            raise ConfigError(f"activations=int8 needs one scale an output, but group={self.group}")
        if self.prune != "none" and self.method != "round":
            raise ConfigError(
                f"method={self.method} would move the zeros of prune={self.prune}; use method=round"
            )
        if not (self.changes_matrices or self.shrinks or self.tables != "plain"):
            raise ConfigError(
                "the recipe changes nothing; give format, tables, prune, heads, channels or layers"
            )
        self._check_effects()

    def _check_effects(self) -> None:
        """Raise ConfigError for a key that was set and changes nothing."""
        method, prune = f"method={self.method}", f"prune={self.prune}"
        damped = self.method == "gptq" or self.prune == "sparsegpt"
        has_share = self.prune != "none" and self.pattern is None
        no_text = "a recipe that looks at no text"
        effects = {
            "pattern": (self.prune != "none", prune),
            "act_order": (self.method == "gptq", method),
            "damping": (damped, f"{method} and {prune}"),
            "strength": (self.method == "smoothquant", method),
            "sparsity": (has_share, f"{prune}, pattern={self.pattern}"),
            "keep": (self.changes_matrices, f"format={self.format} and {prune}"),
            "rows": (self.calibrates, no_text),
            "length": (self.calibrates, no_text),
        }
        for name, (has_effect, where) in effects.items():
            if self._is_set(name) and not has_effect:
                value = getattr(self, name)
                raise ConfigError(f"{name}={value} has no effect with {where}; remove it")

    def _is_set(self, name: str) -> bool:
        return name in settings.changed(self)

    @property
    def grid(self) -> Grid | None:
        """The numbers that its format has; None: of nf4 and plain."""
        bits = {"int8": 8, "int4": 4}.get(self.format)
        return None if bits is None else Grid(bits, self.group, self.symmetric, "float16")

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

    @property
    def changes_matrices(self) -> bool:
        """Whether matrices of layers are quantised or pruned."""
        return self.format != "plain" or self.prune != "none"

    def changes(self, path: str) -> bool:
        """Return whether the matrix of this path is quantised or pruned."""
        return self.changes_matrices and not tree.match(path, self.keep)


PRESETS = {
    "int8": Recipe(format="int8", group=64, tables="int8"),
    "int8-channel": Recipe(format="int8", tables="int8"),
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
    try:
        recipe = settings.build(Recipe, settings.override(mapping, assignments), "recipe")
    except ConfigError as error:
        raise ConfigError(f"{word}: {error}") from error
    first = [] if name in assignments else [name if name in PRESETS else Path(name).stem]
    return ",".join([*first, *assignments]), recipe


def split_recipes(words: str) -> list[str]:
    """Return the recipes of a list with commas, in which keys may follow a name."""
    recipes: list[str] = []
    for word in filter(None, (part.strip() for part in words.split(","))):
        if re.match(r"[a-z_]+=", word) and recipes:
            recipes[-1] += f",{word}"
        else:
            recipes.append(word)
    if not recipes:
        raise ConfigError(f"--recipes is empty; name some of {', '.join(PRESETS)}")
    return recipes
