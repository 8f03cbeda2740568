"""Images in files as the pixels that a model reads: read with Pillow, resized, cut, normalised."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8

from jaxgen import arguments
from jaxgen.errors import ConfigError, DataError, MissingPackageError

# In the order of the numbers that Pillow, and so files of settings, have for them.
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Triple = tuple[float, float, float]  # of red, green and blue
ImageLike = str | os.PathLike | np.ndarray


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "Y X 3"]:
    """Return the colours of an image file, upright: rows of pixels of red, green and blue.

    Args:
        path: of a file that Pillow reads: PNG, JPEG, WebP, GIF and others. Grey, palettes and CMYK
            become RGB; 16 bits become 8; what is transparent has the colour that stands there.

    Returns:
        Bytes [height, width, 3]. Of several images in a file the first, with a warning. Raises
        ConfigError if there is no such file, DataError for one that holds no whole image, or one
        with more pixels than Pillow reads (179 million), MissingPackageError without the extra
        `vision`.

    >>> from PIL import Image
    >>> Image.new("L", (4, 2), 255).save("white.png")
    >>> read_image("white.png").shape
    (2, 4, 3)
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is no file; name an image file")
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingPackageError(
            "images are read with Pillow: pip install 'jaxgen[vision]'"
        ) from None
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            pixels = _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {str(error).partition(',')[0]}; make it smaller") from None
    except Exception as error:  # of a damaged file, of which Pillow's readers know all kinds
        reason = str(error).replace(repr(str(path)), "it").replace(str(path), "it")
        raise DataError(f"{path} holds no whole image ({reason:.80})") from None
    if count > 1:
        warnings.warn(f"{path} holds {count} images; the first is read", stacklevel=2)
    return pixels


def _rgb(image: Any) -> np.ndarray:
    """Return the bytes [Y, X, 3] of an image of Pillow, whatever its mode."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, of no known range")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its pixels have 32 bits, of no known range")
        return np.repeat(grey[..., None] // 257, 3, axis=-1).astype(np.uint8)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How an image becomes what a model reads, as an image processor of transformers does it.

    size: (height, width) it is resized to, or the length of its shortest side. crop_size: (height,
    width) that is cut from its middle, what is missing being 0. rescale_factor: what a byte is
    multiplied by. image_mean: what is taken from each colour then; image_std: what it is divided
    by. None leaves a step out.

    >>> front = Pixels(size=(2, 2), image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    >>> front(np.full((4, 4, 3), 255, np.uint8))[0, 0].tolist()
    [1.0, 1.0, 1.0]
    """

    size: tuple[int, int] | int | None = None
    resample: Resample = "bilinear"
    crop_size: tuple[int, int] | None = None
    rescale_factor: float | None = 1 / 255
    image_mean: Triple | None = None
    image_std: Triple | None = None

    def __post_init__(self) -> None:
        for name in ("size", "crop_size", "rescale_factor", "image_std"):
            value = getattr(self, name)
            if value is not None and not np.all(np.asarray(value) > 0):
                raise ConfigError(f"{name}={value} must be greater than 0")
        if (self.image_mean is None) != (self.image_std is None):
            raise ConfigError(
                f"image_mean={self.image_mean} with image_std={self.image_std}: give both or none"
            )

    def __call__(self, image: ImageLike) -> Float[np.ndarray, "Y X 3"]:
        """Return the numbers that a model reads of an image: a file, or its bytes [Y, X, 3].

        Raises ConfigError for an array of another shape or dtype; the rest is as in `read_image`.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
            raise ConfigError(
                f"image is {pixels.dtype} {list(pixels.shape)}; give bytes (uint8) of the shape "
                f"[height, width, 3]"
            )
        if self.size is not None:
            pixels = self._resized(pixels)
        if self.crop_size is not None:
            pixels = _middle(pixels, self.crop_size)
        factor = 1.0 if self.rescale_factor is None else self.rescale_factor
        numbers = (pixels.astype(np.float64) * factor).astype(np.float32)  # as there
        if self.image_mean is not None:
            numbers -= np.asarray(self.image_mean, np.float32)
            numbers /= np.asarray(self.image_std, np.float32)
        return numbers

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        from PIL import Image

        height, width = pixels.shape[:2]
        if isinstance(self.size, int):
            short, long = min(height, width), max(height, width)
            other = max(int(self.size * long / short), 1)
            height, width = (other, self.size) if height >= width else (self.size, other)
        elif self.size is not None:
            height, width = self.size
        kind = Image.Resampling(get_args(Resample).index(self.resample))
        return np.array(Image.fromarray(pixels).resize((width, height), kind))

    @property
    def shape(self) -> tuple[int, int] | None:
        """The height and width of all that it makes; None: they depend on the image."""
        if self.crop_size is not None:
            return self.crop_size
        return self.size if isinstance(self.size, tuple) else None


def _middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the middle of an image, with zeros around one that is smaller."""
    for axis, wanted in enumerate(size):
        there = pixels.shape[axis]
        if there < wanted:
            before = -((there - wanted) // 2)
            widths = [(0, 0)] * 3
            widths[axis] = (before, wanted - there - before)
            pixels = np.pad(pixels, widths)
        begin = (pixels.shape[axis] - wanted) // 2
        pixels = pixels.take(range(begin, begin + wanted), axis=axis)
    return pixels
