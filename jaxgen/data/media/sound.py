"""Sound files as one channel of float32 samples: WAV by itself, FLAC and others by soundfile."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.data.media.resampling import resample
from jaxgen.errors import ConfigError, DataError, MissingPackageError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
FORMATS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 49: "GSM", 80: "MPEG", 85: "MP3"}
DTYPES = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 24): "V3", (PCM, 32): "<i4"}
DTYPES |= {(FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}
UNKNOWN_SIZE = 0xFFFFFFFF  # of a file that a program wrote into a pipe
MOST_CHANNELS, MOST_RATE = 64, 768_000


class Sound(NamedTuple):
    """A sound that is read piece by piece: `read(begin, end)` gives [end - begin] mono samples."""

    rate: int
    length: int
    read: Callable[[int, int], np.ndarray]


@arguments.checked(rate=at_least(1))
def read_sound(path: str | os.PathLike, rate: int = 16000) -> Float[np.ndarray, "T"]:
    """Return the samples of a sound file in float32, its channels averaged.

    Args:
        path: of a WAV file (8, 16, 24 or 32 bits, or float); of FLAC, Ogg, MP3 or AIFF with the
            extra `audio`.
        rate: samples a second to return, at least 1; a file of another rate is resampled.

    Returns:
        Samples [T] from -1 to 1. Raises ConfigError if there is no such file, DataError for one
        that holds no sound, or none that can be read, MissingPackageError without the extra. A file
        that ends before its header says so is read as far as it goes, with a warning.

    >>> from jaxgen.data.media import write_wav
    >>> write_wav("a.wav", np.zeros(8000, np.float32), 8000)
    >>> read_sound("a.wav").shape
    (16000,)
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is no file; name a sound file")
    with path.open("rb") as file:
        begin = file.read(12)
    if not begin:
        raise DataError(f"{path} is empty; it holds no sound")
    is_wav = begin[:4] == b"RIFF" and begin[8:] == b"WAVE"
    sound = _open_wav(path) if is_wav else _open_with_library(path, begin)
    if not sound.length:
        raise DataError(f"{path} holds no sound: 0 samples")
    samples = resample(sound.read, sound.length, sound.rate, rate)
    if not np.isfinite(samples).all():
        raise DataError(f"{path} holds samples that are NaN or infinite; it is damaged")
    return samples


def write_wav(path: str | os.PathLike, samples: Float[np.ndarray, "T"], rate: int) -> None:
    """Write samples [T] as a WAV file of 16 bits and one channel; ConfigError beyond -1 to 1."""
    if not (np.abs(samples) <= 1).all():
        raise ConfigError(f"samples reach {np.abs(samples).max()}; divide them, 1 is the loudest")
    data = np.round(np.asarray(samples) * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", PCM, 1, rate, 2 * rate, 2, 16)
    body = b"WAVE" + _chunk(b"fmt ", form) + _chunk(b"data", data)
    Path(path).write_bytes(_chunk(b"RIFF", body))


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body


def _open_wav(path: Path) -> Sound:
    """Return the sound of a WAV file, whose samples stay on the disk until they are read."""
    total, at, form, data = path.stat().st_size, 12, None, None
    with path.open("rb") as file:
        while data is None and at + 8 <= total:
            file.seek(at)
            name, size = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                data = (at + 8, size)
            elif name == b"fmt ":
                form = file.read(min(size, 40))
            at += 8 + size + size % 2
    if form is None or len(form) < 16 or data is None:
        lacks = "fmt" if form is None or len(form) < 16 else "data"
        raise DataError(f"{path} is no whole WAV file: it has no {lacks} chunk")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == EXTENSIBLE and len(form) >= 26:
        (kind,) = struct.unpack("<H", form[24:26])
    if (kind, bits) not in DTYPES:
        name = FORMATS.get(kind, f"format {kind}")
        name = f"{bits}-bit {'PCM' if kind == PCM else 'float'}" if kind in (PCM, FLOAT) else name
        raise DataError(
            f"{path} holds {name}, which is not read; convert it: ffmpeg -i IN -c:a pcm_s16le "
            f"OUT.wav"
        )
    if not 1 <= channels <= MOST_CHANNELS or not 1 <= rate <= MOST_RATE:
        raise DataError(f"{path}: {channels} channels at {rate} samples a second are no sound")
    return _mapped(path, data, kind, bits, channels, rate, total)


def _mapped(
    path: Path, data: tuple[int, int], kind: int, bits: int, channels: int, rate: int, total: int
) -> Sound:
    """Return the sound of a data chunk (place, bytes), or of what the file holds of it."""
    (at, size), width = data, channels * bits // 8
    there = min(size, total - at) // width
    if size > total - at and size < UNKNOWN_SIZE - 44:
        warnings.warn(
            f"{path} is cut off: {there / rate:.2f} s are there of {size // width / rate:.2f} s",
            stacklevel=4,
        )
    if not there:
        return Sound(rate, 0, lambda begin, end: np.zeros(0, np.float32))
    raw = np.memmap(path, DTYPES[kind, bits], "r", at, (there, channels))

    def read(begin: int, end: int) -> np.ndarray:
        return _floats(np.asarray(raw[begin:end]), kind, bits).mean(axis=1, dtype=np.float32)

    return Sound(rate, there, read)


def _floats(raw: np.ndarray, kind: int, bits: int) -> np.ndarray:
    """Return samples from -1 to 1 of what a file stores."""
    if kind == FLOAT:
        return raw.astype(np.float32)
    if bits == 8:
        return (raw.astype(np.float32) - 128) / 128
    if bits == 24:
        parts = np.ascontiguousarray(raw).view(np.uint8).reshape(*raw.shape, 3)
        wide = np.zeros((*raw.shape, 4), np.uint8)
        wide[..., 1:] = parts
        return wide.view("<i4")[..., 0] / np.float32(2**31)
    return raw / np.float32(2 ** (bits - 1))


def _open_with_library(path: Path, begin: bytes) -> Sound:
    """Return the sound of a file that is no WAV file."""
    kind = {b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF", b"ID3": "MP3"}
    name = next((word for magic, word in kind.items() if begin.startswith(magic)), None)
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if name is None:
            raise DataError(f"{path} is no WAV file, nor one of FLAC, Ogg, AIFF or MP3") from error
        raise MissingPackageError(
            f"{path} is {name}, which needs the package soundfile: pip install 'jaxgen[audio]'"
        ) from error
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, ValueError) as error:  # soundfile's own error is a RuntimeError
        raise DataError(f"{path} is damaged, or no sound file that is known: {error}") from error
    return Sound(rate, len(samples), lambda begin, end: samples[begin:end].mean(axis=1))
