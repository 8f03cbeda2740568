"""What preprocessor_config.json says of sound and images: honoured, or refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.config_parts import Stem
from jaxgen.data.media.images import RESAMPLE, Pixels
from jaxgen.data.media.log_mel import LogMel
from jaxgen.errors import CheckpointError, ConfigError, nearest

PREPROCESSOR = "preprocessor_config.json"
MAX_BYTES = 16 << 20  # old files hold their filters, which are made anew
SOUND = ("feature_size", "sampling_rate", "hop_length", "n_fft", "chunk_length")
# The only values that are known; of the first, the front end is another.
ONLY: dict[str, Any] = {"feature_extractor_type": "WhisperFeatureExtractor", "padding_value": 0.0}
ONLY |= {"padding_side": "right", "dither": 0.0, "do_normalize": False}
FREE = frozenset(
    "mel_filters n_samples nb_max_frames processor_class return_attention_mask".split()
)
HALVES = (0.5, 0.5, 0.5)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Of each kind of image processor the size, resample, crop_size, image_mean and image_std that a
# file may leave out; "FeatureExtractor" or "ImageProcessor" stands behind its name.
OF_CLASS: dict[str, tuple[Any, ...]] = {
    "ViT": ((224, 224), 2, None, HALVES, HALVES),
    "DeiT": ((256, 256), 3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": (224, 3, (224, 224), MEAN, STD),
}
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
PIXELS = ("size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std", *STEPS)
NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb")


def read_log_mel(folder: Path | None, stem: Stem) -> LogMel:
    """Return the front end of a folder's sound; CheckpointError for a setting that is not known.

    Without the file it is Whisper's, of as many bins and frames as the stem reads.
    """
    path = None if folder is None else folder / PREPROCESSOR
    about = (
        {} if path is None or not path.exists() else files.read_json(path, "settings", MAX_BYTES)
    )
    for key, value in about.items():
        if key not in (*SOUND, *ONLY, *FREE):
            raise CheckpointError(
                f"{path}: {key}={value!r:.40} is not known here{nearest(key, SOUND)}; remove it if "
                f"it has no effect"
            )
        if key in ONLY and value != ONLY[key]:
            raise CheckpointError(
                f"{path}: {key}={value!r:.40} is not known here; known is {ONLY[key]!r}"
            )
    about = about or settings_of(stem)
    try:
        front = LogMel(**{key: about[key] for key in SOUND if key in about})
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if (front.frames, front.feature_size) != stem.shape:
        raise CheckpointError(
            f"{path or 'the front end'}: windows of {front.frames} frames of {front.feature_size} "
            f"bins, but the model reads {stem.shape[0]} of {stem.shape[1]}"
        )
    return front


def read_pixels(folder: Path | None, stem: Stem) -> Pixels:
    """Return the front end of a folder's images; CheckpointError for a setting that is not known.

    Without the file it is ViT's, of the size that the stem reads.
    """
    path = None if folder is None else folder / PREPROCESSOR
    there = path is not None and path.exists()
    about = files.read_json(path, "settings", MAX_BYTES) if path and there else settings_of(stem)
    for key in about.keys() - {*PIXELS, *NAMES}:
        if about[key] not in (None, False):
            raise CheckpointError(
                f"{path}: {key}={about[key]!r:.40} is not known here{nearest(key, PIXELS)}; remove "
                f"it if it has no effect"
            )
    name = about.get("image_processor_type") or about.get("feature_extractor_type") or "ViT"
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))
    if kind not in OF_CLASS:
        raise CheckpointError(f"{path}: {name} is not known here; known are {', '.join(OF_CLASS)}")
    size, resample, crop, mean, std = OF_CLASS[kind]
    cut = about.get("do_center_crop", crop is not None)
    own = {
        "size": _size(about.get("size", size), kind) if about.get("do_resize", True) else None,
        "resample": _resample(about.get("resample", resample)),
        "crop": _size(about.get("crop_size", crop), "ViT") if cut else None,
        "rescale": about.get("rescale_factor", 1 / 255) if about.get("do_rescale", True) else None,
    }
    if about.get("do_normalize", True):
        own |= {"mean": about.get("image_mean", mean), "std": about.get("image_std", std)}
        own |= {name: _colours(f"image_{name}", own[name]) for name in ("mean", "std")}
    front = Pixels(**own)
    if stem.channels != 3 or front.shape != (stem.size, stem.size):
        raise CheckpointError(
            f"{path or 'the front end'}: images of {front.shape or 'any size'}, 3 colours, but the "
            f"model reads {stem.size} x {stem.size} of {stem.channels}"
        )
    return front


def _size(given: Any, kind: str) -> Any:
    """Return (height, width), or the shortest side, which a number alone is for CLIP."""
    if isinstance(given, dict):
        given = given.get("shortest_edge") or (given.get("height"), given.get("width"))
        kind = "CLIP"
    if isinstance(given, int) and kind != "CLIP":
        given = (given, given)
    values = given if isinstance(given, tuple | list) else (given,)
    if len(values) > 2 or not all(type(value) is int and value > 0 for value in values):
        raise CheckpointError(f"size={given!r:.40} is no size of an image")
    return given if isinstance(given, int) else tuple(values)


def _colours(key: str, given: Any) -> tuple[float, ...]:
    numbers = given if isinstance(given, list | tuple) else ()
    if len(numbers) != 3 or not all(type(x) in (int, float) for x in numbers):
        raise CheckpointError(f"{key}={given!r:.40} is no number for each of 3 colours")
    return tuple(map(float, numbers))


def _resample(given: Any) -> str:
    names = {number: name for name, number in RESAMPLE.items()}
    if type(given) is not int or given not in names:
        raise CheckpointError(f"resample={given!r:.40} is none of Pillow's {[*names]}")
    return names[given]


def settings_of(stem: Stem) -> dict[str, Any]:
    """Return the settings of a front end that makes what a stem reads, its family's otherwise.

    None for windows that are no whole seconds, which the file can't say.
    """
    if stem.kind == "patches":
        size = {"height": stem.size, "width": stem.size}
        return {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 2}
    front = LogMel(feature_size=stem.channels)
    seconds, rest = divmod(stem.shape[0] * front.hop_length, front.sampling_rate)
    return {} if rest else {**vars(replace(front, chunk_length=seconds)), **ONLY}


def copy_preprocessor(folder: Path, target: Path) -> None:
    """Copy the settings of sound or images of a folder into another; nothing if it has none."""
    if (folder / PREPROCESSOR).is_file():
        (target / PREPROCESSOR).write_bytes((folder / PREPROCESSOR).read_bytes())
