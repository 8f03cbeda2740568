"""What preprocessor_config.json says of sound and images: honoured, or refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from jaxgen import files
from jaxgen.config_media import Stem, Vision
from jaxgen.data.media.images import Pixels, Resample
from jaxgen.data.media.log_mel import LogMel
from jaxgen.errors import CheckpointError, ConfigError, nearest

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
INSIDE = "image_processor"  # where the second holds what is else in the first
MAX_BYTES = 16 << 20  # old files hold their filters, which are made anew
SOUND = ("feature_size", "sampling_rate", "hop_length", "n_fft", "chunk_length")
# The only values that are known; of the first, the front end is another.
ONLY: dict[str, Any] = {"feature_extractor_type": "WhisperFeatureExtractor", "padding_value": 0.0}
ONLY |= {"padding_side": "right", "dither": 0.0, "do_normalize": False}
FREE = frozenset(
    "mel_filters n_samples nb_max_frames processor_class return_attention_mask".split()
)
HALVES = (0.5, 0.5, 0.5)
# What the image processors whose order of steps is ours take for what a file leaves out; of their
# names, "ImageProcessor" or "FeatureExtractor" stands behind these.
STEPS = {
    "do_resize": ("size",),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}
SHARED: dict[str, Any] = {**dict.fromkeys(STEPS, True), "resample": 3, "rescale_factor": 1 / 255}
SHARED |= {"crop_size": {"height": 224, "width": 224}}
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": SHARED
    | {"do_center_crop": False, "size": {"height": 224, "width": 224}, "resample": 2}
    | {"image_mean": HALVES, "image_std": HALVES},
    "DeiT": SHARED
    | {"size": {"height": 256, "width": 256}}
    | {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)},
    "CLIP": SHARED
    | {"size": {"shortest_edge": 224}, "image_mean": (0.48145466, 0.4578275, 0.40821073)}
    | {"image_std": (0.26862954, 0.26130258, 0.27577711)},
}
NAMES = ("image_processor_type", "feature_extractor_type")
CONVERT = "do_convert_rgb"  # which is done anyway: a model of three colours reads no other


def read_log_mel(folder: Path | None, stem: Stem) -> LogMel:
    """Return the front end of a folder's sound; CheckpointError for a setting that is not known.

    Without the file it is Whisper's, of as many bins and frames as the stem reads.
    """
    path, about = _about(folder)
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
    path, about = _about(folder)
    about = {k: v for k, v in (about or settings_of(stem)).items() if v is not None}
    name = next((str(about.pop(key)) for key in NAMES if key in about), "ViTImageProcessor")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    if kind not in IMAGES:
        raise CheckpointError(f"{path}: {name} is not known here; known are {', '.join(IMAGES)}")
    for key, value in about.items():
        if key not in (*IMAGES[kind], *FREE, CONVERT) and value is not False:
            raise CheckpointError(
                f"{path}: {key}={value!r:.40} is not known here{nearest(key, IMAGES[kind])}; "
                f"remove it if it has no effect"
            )
        if key in (*STEPS, CONVERT) and type(value) is not bool:
            raise CheckpointError(f"{path}: {key}={value!r:.40} is neither true nor false")
    full = IMAGES[kind] | about
    off = {field for step, fields in STEPS.items() if not full[step] for field in fields}
    fields: dict[str, Any] = {key: full[key] for key in IMAGES[kind] if key not in STEPS}
    try:
        fields["size"] = _size("size", full["size"], square=kind != "CLIP")
        fields["crop_size"] = _size("crop_size", full["crop_size"], square=True)
        fields["resample"] = _name_of(full["resample"])
        fields |= dict.fromkeys(off)
        front = Pixels(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if stem.channels != 3 or front.shape != (stem.size, stem.size):
        raise CheckpointError(
            f"{path or 'the front end'}: images of {front.shape or 'any size'}, 3 colours, but the "
            f"model reads {stem.size} x {stem.size} of {stem.channels}"
        )
    return front


def read_image_prompts(folder: Path | None, vision: Vision) -> Pixels:
    """Return the front end of the images in a decoder's prompts, as a folder's processor has it.

    Raises CheckpointError for a setting that is not known, or with which an image would take
    another number of places than the model has vectors for.
    """
    front = read_pixels(folder, vision.stem)
    path = None if folder is None else folder / PROCESSOR
    if path is None or not path.exists():
        return front
    known = prompts_of(vision)
    for key, value in files.read_json(path, "settings", MAX_BYTES).items():
        if key in (INSIDE, "image_token", "chat_template", *FREE) or value is None:
            continue
        if key not in known:
            raise CheckpointError(
                f"{path}: {key}={value!r:.40} is not known here{nearest(key, known)}; remove it if "
                f"it has no effect"
            )
        if value != known[key]:
            raise CheckpointError(
                f"{path}: {key}={value!r:.40}, but the model has {known[key]!r}, so that an image "
                f"takes {vision.vectors} places"
            )
    return front


def prompts_of(vision: Vision) -> dict[str, Any]:
    """Return what a processor says of the places of an image in a prompt."""
    kept = {"patches": "default", "all": "full"}[vision.kept]
    first = int(vision.stem.first == "learned")
    own = {"patch_size": vision.stem.patch, "num_additional_image_tokens": first}
    return own | {"vision_feature_select_strategy": kept}


def _about(folder: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """Return the file of a folder's settings and what it says, nothing if there is none."""
    path = None if folder is None else folder / PREPROCESSOR
    if path is None or path.exists():
        return path, {} if path is None else files.read_json(path, "settings", MAX_BYTES)
    whole = path.with_name(PROCESSOR)
    about = files.read_json(whole, "settings", MAX_BYTES).get(INSIDE) if whole.exists() else None
    if not isinstance(about, dict | None):
        raise CheckpointError(f"{whole}: {INSIDE}={about!r:.40} is no mapping")
    return (path, {}) if about is None else (whole, about)


def _size(key: str, given: Any, *, square: bool) -> Any:
    """Return (height, width), or the shortest side; square: what a number alone stands for."""
    if isinstance(given, dict) and given.keys() == {"height", "width"}:
        return given["height"], given["width"]
    if isinstance(given, dict) and given.keys() == {"shortest_edge"}:
        return given["shortest_edge"]
    if type(given) is not int:
        raise ConfigError(
            f"{key}={given!r:.60} is not known here; known are height with width, shortest_edge, "
            f"and a number"
        )
    return (given, given) if square else given


def _name_of(resample: Any) -> str:
    names = get_args(Resample)
    if type(resample) is not int or not 0 <= resample < len(names):
        raise ConfigError(f"resample={resample!r:.40} is none of 0 to {len(names) - 1}, Pillow's")
    return names[resample]


def settings_of(stem: Stem) -> dict[str, Any]:
    """Return the settings of a front end that makes what a stem reads, its family's otherwise.

    None for windows that are no whole seconds, which the file can't say.
    """
    if stem.kind == "patches":
        size = {"height": stem.size, "width": stem.size}
        if stem.norm == "norm":
            shortest = {"shortest_edge": stem.size}
            return {"image_processor_type": "CLIPImageProcessor", "size": shortest} | {
                "crop_size": size
            }
        return {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 2}
    front = LogMel(feature_size=stem.channels)
    seconds, rest = divmod(stem.shape[0] * front.hop_length, front.sampling_rate)
    return {} if rest else {**vars(replace(front, chunk_length=seconds)), **ONLY}


def copy_preprocessor(folder: Path, target: Path) -> None:
    """Copy the settings of sound or images of a folder into another; nothing if it has none."""
    there = [name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()]
    for name in (PREPROCESSOR, PROCESSOR) if there else ():
        (target / name).unlink(missing_ok=True)
        if name in there:
            (target / name).write_bytes((folder / name).read_bytes())
