"""Log-mel frames are what their formula says, one frame at a time."""

import numpy as np
import pytest

from jaxgen.data.media import LogMel
from jaxgen.errors import ConfigError

FRONT = LogMel(feature_size=20, chunk_length=1)


def mel(hertz):
    return 3 * hertz / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) / (np.log(6.4) / 27)


def triangle(hertz, low, middle, high):
    """Return the weight of a frequency in Slaney's filter between three of them."""
    return max(0.0, min((hertz - low) / (middle - low), (high - hertz) / (high - middle)))


def test_a_frame_is_its_formula():
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    frames = FRONT(samples)
    assert frames.shape == (100, 20)
    hann = np.sin(np.pi * np.arange(400) / 400) ** 2
    seen = samples[50 * 160 - 200 : 50 * 160 + 200] * hann
    waves = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    power = np.abs(waves @ seen) ** 2
    grid = np.linspace(0, 8000, 200_001)
    edges = np.interp(np.linspace(0, mel(8000), 22), [mel(f) for f in grid], grid)
    for row in (0, 7, 19):
        low, middle, high = edges[row : row + 3]
        weights = [triangle(f, low, middle, high) for f in np.linspace(0, 8000, 201)]
        energy = np.dot(weights, power) * 2 / (high - low)
        assert frames[50, row] == pytest.approx((np.log10(energy) + 4) / 4, abs=1e-4)


def test_silence_is_kept_within_eight_powers_of_ten_of_the_loudest():
    quiet = FRONT(np.zeros(16000, np.float32))
    assert np.all(quiet == quiet[0, 0])
    samples = np.zeros(16000, np.float32)
    samples[:4000] = np.sin(np.arange(4000))
    loud = FRONT(samples)
    assert loud.max() - loud.min() == pytest.approx(2.0, abs=1e-6)


def test_a_short_sound_fills_a_window_and_a_long_one_is_whole(monkeypatch):
    sound = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    assert FRONT(sound[:1]).shape == (100, 20) and FRONT(sound).shape == (312, 20)
    whole = FRONT(sound)
    monkeypatch.setattr("jaxgen.data.media.log_mel.BLOCK", 7)
    np.testing.assert_array_equal(FRONT(sound), whole)


def test_a_size_that_is_none_is_named():
    with pytest.raises(ConfigError, match="hop_length=0"):
        LogMel(hop_length=0)
