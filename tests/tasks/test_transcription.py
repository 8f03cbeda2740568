"""Speech becomes text window by window; sounds read together give what each gives alone."""

import jax
import numpy as np
import pytest
import speech_model
from speech_model import CONFIG, TIMES, hum

import jaxgen
from jaxgen import files, tokens
from jaxgen.data.media import write_wav
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.pretrained.preprocessor import PREPROCESSOR, read_log_mel
from jaxgen.text import tasks
from jaxgen.text.loaded_model import open_model
from jaxgen.text.tasks import subtitles, transcription
from jaxgen.text.tasks.transcription import Segment, Speech, Transcript

ONCE = Speech(temperatures=(0.0,))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(speech_model.write(tmp_path_factory.mktemp("speech") / "model"))


def test_sounds_read_together_give_what_each_gives_alone(model):
    sounds = [hum(2.7), hum(0.6, seed=1), hum(1.3, seed=2)]
    together = tasks.transcribe(model, sounds, ONCE, batch=2)
    assert together == [tasks.transcribe(model, [one], ONCE)[0] for one in sounds]
    assert [one.duration for one in together] == [2.7, 0.6, 1.3]
    for one in together:
        assert one.language in ("en", "de") and one.segments
        times = [t for segment in one.segments for t in (segment.start, segment.end)]
        assert times == sorted(times) and times[-1] <= one.duration


def test_segments_come_before_the_whole_and_are_it(model):
    heard = list(tasks.listen(model, [hum(2.7)], ONCE))
    *segments, (number, whole) = heard
    assert number == 0 and isinstance(whole, Transcript)
    assert whole.segments == tuple(one for _, one in segments)
    assert whole.text == "".join(one.text for one in whole.segments).strip()
    assert whole.segments[-1].start > 1  # of a window behind the first


def test_the_language_is_heard_or_told_and_so_is_the_task(model):
    sounds = [hum(2.7, seed=seed) for seed in range(3)]
    heard = tasks.transcribe(model, sounds, ONCE)
    other = {"en": "de", "de": "en"}[heard[0].language]
    told = tasks.transcribe(model, sounds, Speech(language=other, temperatures=(0.0,)))
    assert {one.language for one in told} == {other} and told != heard
    into = Speech(language=other, task="translate", temperatures=(0.0,))
    assert tasks.transcribe(model, sounds, into) != told


def test_without_timestamps_there_are_none(model):
    (one,) = tasks.transcribe(model, [hum(0.8)], Speech(timestamps=False, temperatures=(0.0,)))
    (segment,) = one.segments
    assert all(i < TIMES for i in segment.tokens) and (segment.start, segment.end) == (0, 0.8)


def test_an_unlikely_text_is_drawn_again_and_silence_has_none(model):
    sure = Speech(temperatures=(0.0, 3.0), least_logprob=-1e9, most_compression=1e9)
    unsure = Speech(temperatures=(0.0, 3.0), least_logprob=-1e-9)
    first, again = (tasks.transcribe(model, [hum(0.8)], how)[0] for how in (sure, unsure))
    assert first.segments != again.segments
    assert tasks.transcribe(model, [hum(0.8)], unsure)[0] == again  # a seed decides
    silent = Speech(temperatures=(0.0,), least_logprob=-1e-9, most_silence=0.0)
    assert tasks.transcribe(model, [hum(0.8)], silent)[0].segments == ()


CUTS = {  # ids, 100 being <|0.00|>: pieces of a window of 90 frames, and frames to move on
    "no time": ([7], [(0, 90, [7])], 90),
    "one time": ([100, 7, 110], [(0, 20, [100, 7, 110])], 90),
    "a pair": ([100, 7, 110, 110, 8], [(0, 20, [100, 7, 110])], 20),
    "two closed": ([100, 7, 110, 110, 8, 120],
                   [(0, 20, [100, 7, 110]), (20, 40, [110, 8, 120])], 90),
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_a_window_is_cut_at_pairs_of_times_and_the_rest_is_heard_again(name):
    ids, pieces, moved = CUTS[name]
    assert transcription._cut(ids, 100, 90) == (pieces, moved)


def test_a_session_transcribes(model, tmp_path):
    session = jaxgen.open(model.home)
    write_wav(tmp_path / "a.wav", hum(0.8, rate=8000), 8000)
    (one,) = session.transcribe([tmp_path / "a.wav"], ONCE)
    assert one.duration == 0.8 and one.segments


WRONG = {
    "language='fr'": (hum(0.1), {"language": "fr"}),
    r"temperatures=\[\]": (hum(0.1), {"temperatures": ()}),
    "timestamps=False: sound 0 of 1.5 s": (hum(1.5), {"timestamps": False}),
    r"sound 0 is \[0\]": (np.zeros(0, np.float32), {}),
    r"sound 0 is int16; give floats": (np.zeros(5, np.int16), {}),
    "sound 0 holds samples that are NaN": (np.full(5, np.nan, np.float32), {}),
    r"sound 0 is \[5, 2\]": (np.zeros((5, 2), np.float32), {}),
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_can_not_be_heard_is_one_line(model, reason):
    sound, about = WRONG[reason]
    with pytest.raises(ConfigError, match=reason):
        tasks.transcribe(model, [sound], Speech(**about))


def test_one_sound_is_no_list_and_no_file_no_sound(model, tmp_path):
    with pytest.raises(ConfigError, match="is one sound"):
        tasks.transcribe(model, "a.wav")
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        tasks.transcribe(model, [tmp_path / "a.wav"])


def test_a_model_of_text_hears_nothing_and_one_of_sound_reads_no_text(model, tmp_path):
    config = jaxgen.ModelConfig(vocab_size=259, context=8, layers=1, d_model=8, heads=2)
    text = tokens.train(tokens.TokenizerSettings(kind="bytes"), ())
    jaxgen.save(tmp_path / "text", config, jaxgen.init(config, jax.random.key(0)), tokenizer=text)
    with pytest.raises(ConfigError, match="reads no sound"):
        tasks.transcribe(open_model(tmp_path / "text"), [hum(0.1)])
    with pytest.raises(ConfigError, match="reads no tokens"):
        jaxgen.open(model.home).generate("hello", max_new_tokens=2)


SETTINGS = {
    "do_normalize=True": {"do_normalize": True},
    "dither=0.5": {"dither": 0.5},
    "fature_size=80 is not known here": {"fature_size": 80},
    "windows of 100 frames of 40 bins": {"feature_size": 40},
    "hop_length=0": {"hop_length": 0},
}


@pytest.mark.parametrize("reason", SETTINGS)
def test_a_setting_of_the_front_end_is_honoured_or_refused(model, tmp_path, reason):
    about = files.read_json(model.home / PREPROCESSOR, "settings", 1 << 20)
    files.write_json(tmp_path / PREPROCESSOR, about | SETTINGS[reason])
    with pytest.raises(CheckpointError, match=reason):
        read_log_mel(tmp_path, CONFIG.stem)


def test_a_folder_without_settings_has_whispers(model, tmp_path):
    assert read_log_mel(tmp_path, CONFIG.stem) == read_log_mel(model.home, CONFIG.stem)


SAID = Segment(3661.5, 3662.0, " One\n--> two ", ())
LINES = {
    "text": "One\n--> two\n",
    "times": "[01:01:01.500 --> 01:01:02.000] One\n--> two\n",
    "srt": "7\n01:01:01,500 --> 01:01:02,000\nOne -> two\n\n",
    "vtt": "01:01:01.500 --> 01:01:02.000\nOne -> two\n\n",
    "json": "",
}


@pytest.mark.parametrize("form", LINES)
def test_a_segment_is_written_in_each_format(form):
    assert subtitles.LINES[form](SAID, 7) == LINES[form]
