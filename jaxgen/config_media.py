"""Groups of a ModelConfig about what is not text: the stem of an encoder, images in a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.config_parts import Activation, Feed
from jaxgen.errors import ConfigError
from jaxgen.settings import option

StemKind = Literal["log_mel", "patches"]
First = Literal["none", "learned"]
StemBias = Literal["bias", "none"]
StemNorm = Literal["none", "norm"]
LastNorm = Literal["norm", "none"]
Kept = Literal["all", "patches"]
PATCHES = {"kind": "patches", "channels": 3, "size": 336, "patch": 14}


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Stem:
    """What makes the encoder's first vectors of sound or of an image, in place of token vectors.

    Args:
        kind ... norm: the fields below; `jaxgen train --keys` lists them as model.stem.*.

    >>> jaxgen.Stem(kind="log_mel", channels=80, size=1500).shape  # 30 s of sound
    (3000, 80)
    >>> jaxgen.Stem(kind="patches", channels=3, size=224, patch=16, first="learned").vectors
    197
    """

    kind: StemKind = option(
        "log_mel: two convolutions over frames, the second of stride 2 (Whisper); patches: squares "
        "of an image (ViT)",
        "log_mel",
    )
    channels: int = option("mel bins of a frame; colours of a pixel", 80)
    size: int = option(
        "log_mel: vectors of a window, of two frames each; patches: side of an image, in pixels",
        1500,
    )
    patch: int | None = option("patches: side of one, in pixels", None)
    first: First = option("patches: learned: a vector before them", "none")
    bias: StemBias = option("patches: added to the vector of each", "bias")
    norm: StemNorm = option("patches: norm: behind their positions (CLIP)", "none")

    def __post_init__(self) -> None:
        for name in ("channels", "size", "patch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"stem.{name}={value} must be at least 1")
        patches = self.kind == "patches"
        if patches and (self.patch is None or self.size % self.patch):
            raise ConfigError(
                f"stem.patch={self.patch} with stem.size={self.size}: give a side of patches that "
                f"divides the image's"
            )
        for name, value, off in (
            ("patch", self.patch, None),
            ("first", self.first, "none"),
            ("bias", self.bias, "bias"),
            ("norm", self.norm, "none"),
        ):
            if not patches and value != off:
                raise ConfigError(f"stem.{name}={value} has no effect: stem.kind={self.kind}")

    @property
    def verb(self) -> str:
        """The command that makes of files what it reads."""
        return {"log_mel": "jaxgen transcribe", "patches": "jaxgen caption"}[self.kind]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is read: frames and bins, or rows, columns and colours."""
        frames = (2 * self.size,) if self.kind == "log_mel" else (self.size, self.size)
        return (*frames, self.channels)

    @property
    def vectors(self) -> int:
        """Vectors that it makes."""
        if self.patch is None:
            return self.size
        return (self.size // self.patch) ** 2 + (self.first == "learned")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Vision:
    """How a decoder reads images: vectors of a tower, in the places of a token (Liu et al. 2023).

    An encoder over patches makes vectors of an image, and two layers give them the width of the
    decoder's tokens. They stand where the prompt has the token, in order.

    Args:
        token ... bias: the fields below; `jaxgen train --keys` lists them as model.vision.*.

    >>> jaxgen.Vision(token=32000).vectors  # of 336 x 336 pixels in patches of 14
    576
    """

    token: int = option("id of the token in whose places the vectors stand", 0)
    stem: Stem = option("first layer of the tower, kind=patches", Stem(**PATCHES, first="learned"))
    layers: int = option("depth of the tower", 24)
    d_model: int = option("its width", 1024)
    heads: int = option("its heads", 16)
    d_ff: int | None = option("its feed-forward width; null: 4 d_model", None)
    feed: Feed = option("its feed-forward activation", "gelu_sigmoid")
    norm_epsilon: float = option("of its norms, LayerNorm before each sublayer", 1e-5)
    norm: LastNorm = option("norm: behind its last layer", "none")
    kept: Kept = option("which of its vectors are read: patches: all but stem.first", "patches")
    activation: Activation = option("between the two layers that give them the width", "gelu")
    bias: StemBias = option("of these two", "bias")

    def __post_init__(self) -> None:
        if self.token < 0:
            raise ConfigError(f"vision.token={self.token} must be 0 or more")
        for name in ("layers", "d_model", "heads", "d_ff", "norm_epsilon"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"vision.{name}={value} must be greater than 0")
        if self.stem.kind != "patches":
            raise ConfigError(f"vision.stem.kind={self.stem.kind} is no image; give patches")
        if self.kept == "patches" and self.stem.first == "none":
            raise ConfigError(
                f"vision.kept={self.kept} has no effect: vision.stem.first=none; give kept=all"
            )

    @property
    def vectors(self) -> int:
        """Places that an image takes."""
        return self.stem.vectors - (self.kept == "patches")

    def tower(self, config: Any) -> dict[str, Any]:
        """Return the fields of the tower as an encoder by itself, in the decoder of a config."""
        own = ("stem", "layers", "d_model", "heads", "d_ff", "feed", "norm_epsilon")
        shared = ("init_std", "param_dtype", "compute_dtype", "remat")
        fields = {name: getattr(self, name) for name in own}
        fields |= {name: getattr(config, name) for name in shared}
        fields |= {"topology": "encoder", "head": "none", "positions": "none"}
        return fields | {"context": max(self.stem.vectors, 2)}

    def check(self, config: Any) -> None:
        """Raise ConfigError for settings of a ModelConfig that leave no place for images."""
        for name, value, known in (
            ("topology", config.topology, ("decoder",)),
            ("per_layer", config.per_layer, (None,)),
            ("embed.width", config.embed.width, (None,)),
            ("embed.norm", config.embed.norm, ("none",)),
            ("positions", config.positions, ("rope", "none", "alibi", "relative")),
        ):
            if value not in known:
                words = ", ".join(str(one) for one in known)
                raise ConfigError(f"{name}={value} is not known with vision; known: {words}")
        if config.vocab_size is not None and self.token >= config.vocab_size:
            raise ConfigError(
                f"vision.token={self.token} is no id of vocab_size={config.vocab_size}"
            )
        try:
            config.encoder()
        except ConfigError as error:
            raise ConfigError(f"of vision: {error}") from None
