"""What preprocessor_config.json says of sound: honoured, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.config_parts import Stem
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


def settings_of(stem: Stem) -> dict[str, Any]:
    """Return the settings of a front end that makes what a stem reads, Whisper's otherwise.

    None for windows that are no whole seconds, which the file can't say.
    """
    front = LogMel(feature_size=stem.channels)
    seconds, rest = divmod(stem.shape[0] * front.hop_length, front.sampling_rate)
    return {} if rest else {**vars(replace(front, chunk_length=seconds)), **ONLY}


def copy_preprocessor(folder: Path, target: Path) -> None:
    """Copy the settings of sound or images of a folder into another; nothing if it has none."""
    if (folder / PREPROCESSOR).is_file():
        (target / PREPROCESSOR).write_bytes((folder / PREPROCESSOR).read_bytes())
