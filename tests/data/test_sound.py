"""Sound files of every form are the same samples; what is none is one line."""

import struct
import warnings

import numpy as np
import pytest

from jaxgen.data.media import read_sound, resample, write_wav
from jaxgen.errors import ConfigError, DataError, MissingPackageError

RATE = 16000
WAVE = np.sin(np.arange(800) * 0.05).astype(np.float64) * 0.5
FORMS = [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)]


def stored(samples, kind, bits):
    """Return samples as a file holds them."""
    if kind == 3:
        return samples.astype(f"<f{bits // 8}").tobytes()
    whole = np.round(samples * (2 ** (bits - 1) - 1)).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype("u1").tobytes()
    raw = whole.astype("<i8")[..., None].view("u1").reshape(*whole.shape, 8)
    return np.ascontiguousarray(raw[..., : bits // 8]).tobytes()


def chunk(name, body):
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def wav(data, kind=1, bits=16, channels=1, rate=RATE, more=b"", extensible=False):
    width = channels * bits // 8
    tag = 0xFFFE if extensible else kind
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, kind) + b"\0" * 14
    return chunk(b"RIFF", b"WAVE" + more + chunk(b"fmt ", form) + chunk(b"data", data))


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("kind", "bits"), FORMS)
def test_every_form_of_wav_is_the_same_samples(tmp_path, kind, bits, extensible):
    path = tmp_path / "a.wav"
    note = chunk(b"LIST", b"odd")  # a chunk that nobody reads, of odd length
    path.write_bytes(wav(stored(WAVE, kind, bits), kind, bits, more=note, extensible=extensible))
    read = read_sound(path, RATE)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, WAVE, atol=2.0 ** (3 - min(bits, 24)))


@pytest.mark.parametrize(("kind", "bits"), [(1, 16), (1, 24), (3, 32)])
def test_channels_are_averaged(tmp_path, kind, bits):
    both = np.stack([WAVE, -0.5 * WAVE], axis=1)
    (tmp_path / "a.wav").write_bytes(wav(stored(both, kind, bits), kind, bits, channels=2))
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav", RATE), WAVE / 4, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11127, 22050, 44100, 48000])
def test_a_tone_keeps_its_pitch_at_any_rate(rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    heard = resample(lambda a, b: tone[a:b], rate, rate, RATE)
    assert len(heard) == RATE
    wanted = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(heard[200:-200], wanted[200:-200], atol=1e-5)


def test_what_a_lower_rate_cannot_hold_is_gone():
    tone = np.sin(2 * np.pi * 9500 * np.arange(48000) / 48000).astype(np.float32)
    assert np.abs(resample(lambda a, b: tone[a:b], 48000, 48000, RATE)[200:-200]).max() < 1e-5


def test_pieces_make_what_the_whole_makes(monkeypatch):
    noise = np.random.default_rng(0).standard_normal(44100).astype(np.float32)
    whole = resample(lambda a, b: noise[a:b], 44100, 44100, RATE)
    monkeypatch.setattr("jaxgen.data.media.resampling.BLOCK", 1000)
    pieces = resample(lambda a, b: noise[a:b], 44100, 44100, RATE)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


GOOD = stored(WAVE, 1, 16)
BROKEN = {
    "is empty": b"",
    "0 samples": wav(b""),
    "no fmt chunk": chunk(b"RIFF", b"WAVE" + chunk(b"data", GOOD)),
    "no data chunk": wav(GOOD)[:36],
    "holds ADPCM": wav(GOOD, kind=2, bits=4),
    "holds 12-bit PCM": wav(GOOD, bits=12),
    "0 channels": wav(GOOD, channels=0),
    "0 samples a second": wav(GOOD, rate=0),
    "NaN or infinite": wav(np.array([0.1, np.nan], "<f4").tobytes(), 3, 32),
    "is no WAV file": b"just some words",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_is_no_sound_is_one_line(tmp_path, reason, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    (tmp_path / "a.wav").write_bytes(BROKEN[reason])
    with pytest.raises(DataError, match=reason) as caught:
        read_sound(tmp_path / "a.wav")
    assert "\n" not in str(caught.value) and "a.wav" in str(caught.value)


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(GOOD)[:-801])
    with pytest.warns(UserWarning, match="cut off: 0.02 s are there of 0.05 s"):
        assert len(read_sound(tmp_path / "a.wav")) == 399


def test_a_file_written_into_a_pipe_has_no_size_and_no_warning(tmp_path):
    raw = bytearray(wav(GOOD))
    raw[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_sound(tmp_path / "a.wav")) == 800


def test_flac_needs_the_extra_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    (tmp_path / "a.flac").write_bytes(b"fLaC" + b"\0" * 40)
    with pytest.raises(MissingPackageError, match=r"FLAC.*jaxgen\[audio\]"):
        read_sound(tmp_path / "a.flac")


def test_flac_is_the_same_samples(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", np.stack([WAVE, WAVE], 1), 8000)
    write_wav(tmp_path / "a.wav", WAVE, 8000)
    np.testing.assert_allclose(
        read_sound(tmp_path / "a.flac"), read_sound(tmp_path / "a.wav"), atol=1e-4
    )
    (tmp_path / "b.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:60])
    with pytest.raises(DataError, match="damaged"):
        read_sound(tmp_path / "b.flac")


@pytest.mark.parametrize("loud", [1.5, np.nan])
def test_samples_that_a_file_would_clip_are_refused(tmp_path, loud):
    with pytest.raises(ConfigError, match=f"samples reach {loud}; divide them"):
        write_wav(tmp_path / "a.wav", np.asarray([0.0, loud]), 8000)
    assert not (tmp_path / "a.wav").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        read_sound(tmp_path / "none.wav")
