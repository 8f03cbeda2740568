"""Text from speech with Whisper: windows of 30 s, sought by the timestamps that it writes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.config import ModelConfig
from jaxgen.data.media.log_mel import LogMel
from jaxgen.data.media.sound import read_sound
from jaxgen.decoding.chain import Chain, chain
from jaxgen.decoding.processors.forcing import suppress, suppress_first
from jaxgen.decoding.processors.timestamps import timestamps
from jaxgen.decoding.processors.truncation import temperature
from jaxgen.errors import ConfigError, nearest
from jaxgen.models import api
from jaxgen.pretrained.preprocessor import read_log_mel
from jaxgen.text.batches import batch_size
from jaxgen.text.generate import generate_detailed
from jaxgen.text.loaded_model import LoadedModel

Task = Literal["transcribe", "translate"]
SoundLike = str | os.PathLike | np.ndarray
START, TRANSLATE, NO_TIMES = "<|startoftranscript|>", "<|translate|>", "<|notimestamps|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
FEWEST = 10  # frames at the end of a sound that are still read: 0.1 s


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Speech:
    """How speech becomes text; the defaults are those of Whisper's own program.

    language: a code such as "en"; None: the model hears it, once a sound. temperatures: tried in
    turn while a text repeats itself (it compresses more than `most_compression` times) or is
    unlikely (its tokens' mean log-probability is below `least_logprob`). A window without speech,
    by `most_silence` as its probability, and an unlikely text, has none. timestamps: False asks for
    text alone, of sounds no longer than a window.
    """

    language: str | None = None
    task: Task = "transcribe"
    timestamps: bool = True
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    most_compression: float = 2.4
    least_logprob: float = -1.0
    most_silence: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperatures or not all(t >= 0 for t in self.temperatures):
            raise ConfigError(
                f"temperatures={list(self.temperatures)}: give one or more of 0 and above"
            )


class Segment(NamedTuple):
    """A piece of a transcript: seconds of its begin and end, its text and its token ids."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Transcript:
    """The text of a sound: its segments in order, the language, and the sound's seconds."""

    segments: tuple[Segment, ...]
    language: str | None
    duration: float

    @property
    def text(self) -> str:
        """Return the text of all segments."""
        return "".join(one.text for one in self.segments).strip()


class SpeechTokens(NamedTuple):
    """Ids that steer a Whisper model; languages and tasks by their names, none if it has no such.

    times: id of <|0.00|>, None for a model that writes none.
    """

    start: int
    stop: int
    languages: dict[str, int]
    tasks: dict[str, int]
    times: int | None
    silence: int | None

    def prompt(self, language: int | None, task: Task, *, timed: bool) -> list[int]:
        """Return what a text begins with, which is not part of it."""
        steering = [] if language is None else [language, self.tasks[task]]
        untimed = [] if timed or self.times is None else [self.times - 1]
        return [self.start, *steering, *untimed]


def speech_tokens(model: LoadedModel) -> SpeechTokens:
    """Return the ids of a model's tokenizer and generation config; ConfigError if it has none."""
    stem = model.config.stem
    if stem is None or stem.kind != "log_mel" or model.start is None or not model.stop:
        raise ConfigError(
            f"{model.home or 'the model'} reads no sound (stem={stem and stem.kind}); "
            f"transcription needs a Whisper model"
        )
    settings = {key: json.loads(value) for key, value in model.generation_config.speech}
    vocabulary = getattr(model.tokenizer, "vocabulary", dict)()
    between = range(model.start + 1, vocabulary.get(TRANSLATE, model.start))
    languages = settings.get("lang_to_id") or {n: i for n, i in vocabulary.items() if i in between}
    tasks: Any = settings.get("task_to_id") or {
        task: vocabulary.get(f"<|{task}|>") for task in get_args(Task)
    }
    if settings.get("is_multilingual") is False or None in tasks.values():
        languages, tasks = {}, {}
    untimed = settings.get("no_timestamps_token_id", vocabulary.get(NO_TIMES))
    times = None if untimed is None or untimed + 1 >= model.config.V else untimed + 1
    silence = next((vocabulary[name] for name in NO_SPEECH if name in vocabulary), None)
    codes = {name.strip("<|>"): i for name, i in languages.items()}
    return SpeechTokens(model.start, model.stop[0], codes, tasks, times, silence)


@dataclass
class _Listener:
    """A sound that is being read: its frames [T, bins], how far, and in which language."""

    number: int
    frames: np.ndarray
    total: int
    seconds: float
    seek: int = 0
    language: str | None = None
    rest: list[Segment] = field(default_factory=list)

    def window(self, size: int) -> np.ndarray:
        """Return the next frames [size, bins], zeros behind the sound's own as Whisper has them."""
        rest = self.frames[self.seek : self.seek + size]
        return np.pad(rest, ((0, size - len(rest)), (0, 0)))


@arguments.checked(batch=at_least(1))
def listen(
    model: LoadedModel,
    sounds: Iterable[SoundLike],
    settings: Speech | None = None,
    *,
    batch: int = 1,
) -> Iterator[tuple[int, Segment | Transcript]]:
    """Yield (number of the sound, Segment) as they are heard, and its whole Transcript at the end.

    Args:
      model: a Whisper model with its tokenizer.
      sounds: files, or float samples [T], -1 to 1, at the rate of the model's front end (16000).
      settings: a `Speech`.
      batch: sounds read at once; the text of each is as if alone.

    Raises:
      ConfigError: for a model that reads no sound, a language that it does not know, or a batch
        below 1; DataError for a file that holds no sound.
    """
    settings = settings or Speech()
    tokens = speech_tokens(model)
    _check(model, tokens, settings)
    assert model.config.stem is not None
    front = read_log_mel(model.home, model.config.stem)
    waiting = enumerate(sounds)
    active: list[_Listener] = []
    while True:
        while len(active) < batch and (another := next(waiting, None)) is not None:
            active.append(_begin(front, *another, settings))
        if not active:
            return
        for one, texts in zip(active, _hear(model, tokens, front, active, settings), strict=True):
            for segment in texts:
                one.rest.append(segment)
                yield one.number, segment
            if one.total - one.seek < FEWEST:
                yield one.number, Transcript(tuple(one.rest), one.language, one.seconds)
        active = [one for one in active if one.total - one.seek >= FEWEST]


def transcribe(
    model: LoadedModel,
    sounds: Iterable[SoundLike],
    settings: Speech | None = None,
    *,
    batch: int = 1,
) -> list[Transcript]:
    """Return the Transcript of each sound, in their order; see `listen`."""
    if isinstance(sounds, str | os.PathLike | np.ndarray):
        raise ConfigError(f"sounds={sounds!r:.40} is one sound; give a list of them: [...]")
    pairs = listen(model, sounds, settings, batch=batch)
    whole = {number: one for number, one in pairs if isinstance(one, Transcript)}
    return [whole[number] for number in sorted(whole)]


def _check(model: LoadedModel, tokens: SpeechTokens, settings: Speech) -> None:
    language, codes = settings.language, tokens.languages
    if language is not None and language not in codes:
        some = nearest(language, codes) or f"; such as {', '.join(sorted(codes)[:6])}"
        some = some if codes else "; it knows one alone, so give none"
        raise ConfigError(f"language={language!r:.40} is none of the model's {len(codes)}{some}")
    if settings.task == "translate" and not codes:
        raise ConfigError("task=translate: the model knows one language alone; drop it")


def _begin(front: LogMel, number: int, sound: SoundLike, settings: Speech) -> _Listener:
    """Return a sound with its frames; ConfigError for samples that are none, or too many."""
    is_array = isinstance(sound, np.ndarray)
    samples = sound if is_array else read_sound(sound, front.sampling_rate)
    if samples.dtype.kind != "f":
        raise ConfigError(
            f"sound {number} is {samples.dtype}; give floats from -1 to 1 (int16 / 32768)"
        )
    if not np.isfinite(samples).all():
        raise ConfigError(f"sound {number} holds samples that are NaN or infinite")
    samples = samples.astype(np.float32)
    if samples.ndim != 1 or not samples.size:
        raise ConfigError(f"sound {number} is {list(samples.shape)}; give samples [T], one or more")
    seconds = samples.size / front.sampling_rate
    if not settings.timestamps and seconds > front.chunk_length:
        raise ConfigError(
            f"timestamps=False: sound {number} of {seconds:.1f} s is longer than the "
            f"{front.chunk_length} s of a window, and timestamps tell where the next begins"
        )
    total = max(samples.size // front.hop_length, FEWEST)
    return _Listener(number, front(samples), total, seconds, language=settings.language)


def _hear(
    model: LoadedModel,
    tokens: SpeechTokens,
    front: LogMel,
    active: list[_Listener],
    settings: Speech,
) -> list[list[Segment]]:
    """Return the segments of the next window of each sound, and move on behind them."""
    rows = batch_size(len(active))
    windows = np.stack([one.window(front.frames) for one in active])
    windows = np.pad(windows, ((0, rows - len(active)), (0, 0), (0, 0)))
    memory = _encode(model.params, model.config, windows)
    if tokens.languages and any(one.language is None for one in active):
        codes, ids = list(tokens.languages), list(tokens.languages.values())
        probs = np.asarray(_first_probs(model.ready, model.config, memory, tokens.start))
        for one, row in zip(active, probs, strict=False):
            one.language = one.language or codes[int(row[ids].argmax())]
    texts = _decode(model, tokens, active, memory, settings)
    heard = []
    for one, ids in zip(active, texts, strict=True):
        left = min(one.total - one.seek, front.frames)
        pieces, moved = [], left
        if ids:
            pieces, moved = _cut(ids, tokens.times, left)
        segments = [_segment(model, tokens, front, one, *piece) for piece in pieces]
        one.seek += moved
        heard.append([segment for segment in segments if segment.text.strip()])
    return heard


def _segment(
    model: LoadedModel,
    tokens: SpeechTokens,
    front: LogMel,
    sound: _Listener,
    start: int,
    end: int,
    ids: list[int],
) -> Segment:
    """Return a segment of ids between two frames of the window that the sound is at."""
    second = front.hop_length / front.sampling_rate
    times = [min((sound.seek + at) * second, sound.seconds) for at in (start, end)]
    return Segment(round(times[0], 3), round(times[1], 3), _spell(model, tokens, ids), tuple(ids))


def _decode(
    model: LoadedModel,
    tokens: SpeechTokens,
    active: list[_Listener],
    memory: Any,
    settings: Speech,
) -> list[list[int]]:
    """Return the ids of each window's text, with its timestamps; none where there is no speech."""
    languages = [tokens.languages.get(one.language or "") for one in active]
    timed = settings.timestamps and tokens.times is not None
    prompts = [tokens.prompt(language, settings.task, timed=timed) for language in languages]
    rows = memory.state.shape[0]
    prompt = np.array(prompts + prompts[-1:] * (rows - len(prompts)), np.int32)
    length = model.config.context - prompt.shape[1]

    @cache
    def probs() -> Any:
        return np.asarray(_first_probs(model.ready, model.config, memory, tokens.start))

    def silence(row: int) -> float:
        return 0.0 if tokens.silence is None else float(probs()[row, tokens.silence])

    texts: dict[int, list[int]] = {}
    for attempt, heat in enumerate(settings.temperatures):
        key = jax.random.fold_in(jax.random.key(settings.seed), attempt)
        sample = _sampler(model, tokens, heat, timed=timed)
        stops = np.asarray([tokens.stop], np.int32)
        how = (model.ready, model.config, memory, prompt, key, sample, stops)
        out = jax.device_get(_generate(*how, length=length))
        for row in set(range(len(active))) - texts.keys():
            count = int(out.num_generated[row])
            ids = [int(i) for i in out.tokens[row, :count] if i != tokens.stop]
            logprob = float(out.logprobs[row, :count].sum()) / max(count, 1)
            unlikely = logprob < settings.least_logprob
            silent = unlikely and silence(row) > settings.most_silence
            repeats = _compression(model, tokens, ids) > settings.most_compression
            if silent or attempt + 1 == len(settings.temperatures) or not (unlikely or repeats):
                texts[row] = [] if silent else ids
        if len(texts) == len(active):
            break
    return [texts[row] for row in range(len(active))]


def _compression(model: LoadedModel, tokens: SpeechTokens, ids: list[int]) -> float:
    """Return how many times shorter a text is when it is compressed."""
    raw = _spell(model, tokens, ids).encode()
    return len(raw) / len(zlib.compress(raw))


def _spell(model: LoadedModel, tokens: SpeechTokens, ids: list[int]) -> str:
    """Return the text of ids without its timestamps."""
    end = model.tokenizer.vocab_size if tokens.times is None else tokens.times
    return model.tokenizer.decode([i for i in ids if i < end])


def _sampler(model: LoadedModel, tokens: SpeechTokens, heat: float, *, timed: bool) -> Chain:
    """Return the processors of a draw, in the order in which transformers has them."""
    config = model.generation_config
    parts: list[Any] = []
    if config.begin_suppress_tokens:
        parts.append(suppress_first(list(config.begin_suppress_tokens)))
    if config.suppress_tokens:
        parts.append(suppress(list(config.suppress_tokens)))
    if timed and tokens.times is not None:
        most = dict(config.speech).get("max_initial_timestamp_index")
        most = model.config.V if most is None else json.loads(most)
        parts.append(timestamps(tokens.times, tokens.stop, first=most))
    elif tokens.times is not None:
        parts.append(suppress(list(range(tokens.times, model.config.V))))
    return chain(*parts, temperature(heat))


def _cut(
    ids: list[int], times: int | None, left: int
) -> tuple[list[tuple[int, int, list[int]]], int]:
    """Return ((first frame, last frame, ids) of each segment, frames to move on) of a window.

    left: frames that the sound has in the window. A pair of timestamps ends a segment; what
    follows the last pair is heard again in the next window, if no timestamp ends it.
    """
    is_time = [times is not None and i >= times for i in ids]
    frame = 2  # of a step of timestamps

    def at(i: int) -> int:
        return (i - (times or 0)) * frame

    ends = [i + 1 for i in range(len(ids) - 1) if is_time[i] and is_time[i + 1]]
    closed = is_time[-2:] == [False, True]
    if not ends:
        last = [i for i, time in zip(ids, is_time, strict=True) if time and i != times]
        return [(0, at(last[-1]) if last else left, ids)], left
    cuts = [*ends, len(ids)] if closed else ends
    pieces = [ids[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    moved = left if closed else min(at(pieces[-1][-1]), left) or left
    return [(at(piece[0]), at(piece[-1]), piece) for piece in pieces], moved


@partial(jax.jit, static_argnames="config")
def _encode(params: Any, config: ModelConfig, windows: Any) -> Any:
    return api.encode(params, config, media=windows)


@partial(jax.jit, static_argnames="config")
def _first_probs(params: Any, config: ModelConfig, memory: Any, start: Any) -> jax.Array:
    """Return the probabilities [B, V] of what follows the start of a text."""
    begin = jnp.full((memory.state.shape[0], 1), start, jnp.int32)
    logits = api.apply(params, config, begin, memory=memory).logits
    assert logits is not None
    return jax.nn.softmax(logits[:, 0].astype(jnp.float32))


@partial(jax.jit, static_argnames=("config", "length"))
def _generate(params, config, memory, prompt, key, sample, stops, *, length: int) -> Any:
    return generate_detailed(
        params, config, prompt, key, length=length, sample=sample, stop=stops, memory=memory
    )
