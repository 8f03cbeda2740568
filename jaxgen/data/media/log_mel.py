"""Log-mel spectrograms as Whisper reads them (Radford et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from jaxgen import arguments
from jaxgen.errors import ConfigError

BLOCK = 6000  # frames transformed at once
RANGE = 8.0  # powers of ten below the loudest that are kept apart


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class LogMel:
    """A front end of sound: samples to log-mel frames, with the names of preprocessor_config.json.

    Args:
        feature_size: mel bins.
        sampling_rate: samples a second.
        hop_length: samples from one frame to the next.
        n_fft: samples that a frame sees.
        chunk_length: seconds of a window that a model reads.

    >>> LogMel()(np.zeros(16000, np.float32)).shape  # one second, filled up to a window
    (3000, 80)
    """

    feature_size: int = 80
    sampling_rate: int = 16000
    hop_length: int = 160
    n_fft: int = 400
    chunk_length: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.chunk_length * self.sampling_rate // self.hop_length

    def __call__(self, samples: Float[np.ndarray, "T"]) -> Float[np.ndarray, "frames bins"]:
        """Return the frames of a whole sound: of a window, if it is no longer than one.

        Silence fills up a shorter one. The loudest frame of the sound decides what is silence.
        """
        window = self.chunk_length * self.sampling_rate
        if len(samples) < window:
            samples = np.pad(samples, (0, window - len(samples)))
        padded = np.pad(samples, self.n_fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop_length]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
        count = len(samples) // self.hop_length  # the last frame is left out, as Whisper does
        out = np.empty((count, self.feature_size), np.float32)
        filters = _mel_filters(self.n_fft, self.feature_size, self.sampling_rate)
        for begin in range(0, count, BLOCK):
            spectrum = np.fft.rfft(frames[begin : min(begin + BLOCK, count)] * hann)
            power = spectrum.real**2 + spectrum.imag**2
            out[begin : begin + BLOCK] = np.log10(np.maximum(power @ filters, 1e-10))
        np.maximum(out, out.max() - RANGE, out=out)
        return (out + 4) / 4


@lru_cache(maxsize=4)
def _mel_filters(n_fft: int, bins: int, rate: int) -> Float[np.ndarray, "bands bins"]:
    """Return Slaney's triangles over the bands of a spectrum, each of area 1."""
    bands = np.linspace(0, rate / 2, n_fft // 2 + 1)
    edges = _hertz(np.linspace(0, _mel(min(8000.0, rate / 2)), bins + 2))
    widths = np.diff(edges)
    slopes = edges[None] - bands[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    area = 2.0 / (edges[2:] - edges[:-2])
    return np.maximum(0, np.minimum(rising, falling)) * area


def _mel(hertz: float) -> float:
    """Slaney's scale: linear up to 1000 Hz, then logarithmic."""
    return 15 + np.log(hertz / 1000) * 27 / np.log(6.4) if hertz >= 1000 else 3 * hertz / 200


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels >= 15, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)), 200 * mels / 3)
