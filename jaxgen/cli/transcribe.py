"""`jaxgen transcribe`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, outputs, paths, start
from jaxgen.cli.arguments import at_least
from jaxgen.errors import ConfigError

if TYPE_CHECKING:
    from jaxgen.text.tasks.transcription import Segment, Transcript

Format = Literal["text", "times", "srt", "vtt", "json"]
SUFFIXES: dict[str, Format] = {".txt": "text", ".srt": "srt", ".vtt": "vtt", ".json": "json"}

Model = Annotated[str, Parameter(help="a Whisper model: a folder, or ORG/NAME of the hub")]
Sounds = Annotated[str, Parameter(help="sound files: WAV; FLAC, Ogg, MP3 with jaxgen[audio]")]
Language = Annotated[
    str | None, Parameter(help="that is spoken, by its code; default: the model hears it")
]
Task = Annotated[
    Literal["transcribe", "translate"],
    Parameter(help="write what is said, or translate it into English"),
]
How = Annotated[
    Format | None,
    Parameter(
        name="--format",
        help="a line a segment, with times or without; subtitles; or an object a sound; default: "
        "by --output's name, or text",
    ),
]
Output = Annotated[
    str | None,
    Parameter(help="write there: a file for one sound, a folder of them for several"),
]
Temperature = Annotated[
    tuple[float, ...],
    Parameter(
        help="tried in turn while a text repeats itself or is unlikely; may be repeated; default: "
        "0, 0.2, ... 1"
    ),
]
Batch = Annotated[int, at_least(1), Parameter(help="sounds at once")]


def transcribe(
    model: Model,
    sound: Sounds,
    /,
    *sounds: Sounds,
    language: Language = None,
    task: Task = "transcribe",
    form: How = None,
    output: Output = None,
    temperature: Temperature = (),
    batch: Batch = 1,
) -> None:
    """Write what is said in sound files, as it is heard.

    A long sound is read in windows of 30 s; each begins where the last one's
    timestamps end. Sounds of any rate are resampled, channels averaged.

    For example:
        jaxgen transcribe models/whisper-base talk.wav
        jaxgen transcribe models/whisper-base talk.wav --output talk.srt
        jaxgen transcribe models/whisper-base *.wav --format vtt --output subtitles/
    """
    names = [sound, *sounds]
    form, targets = _targets(names, form, output)
    home = paths.adapted(model, None, ())[0]
    start.prepare_jax(paths.cache())
    from jaxgen.text.loaded_model import open_model
    from jaxgen.text.tasks import transcription

    changes: dict[str, Any] = {"temperatures": temperature} if temperature else {}
    settings = transcription.Speech(language=language, task=task, **changes)
    for name in names:
        if not Path(name).is_file():
            raise ConfigError(f"{name} is no file; name a sound file")
    with exits.in_folder(home):
        listened = transcription.listen(open_model(home), names, settings, batch=batch)
        if targets is None:
            outputs.put(_in_order(listened, form, names))
            return
        for number, pieces in _gathered(listened, form, names):
            files.write(targets[number], "".join(pieces))
            print(f"wrote {targets[number]}", file=sys.stderr)


def _targets(
    names: list[str], form: Format | None, output: str | None
) -> tuple[Format, list[Path] | None]:
    """Return (format, the file of each sound; None: standard output); ConfigError if unclear."""
    if output is None:
        if form in ("srt", "vtt") and len(names) > 1:
            raise ConfigError(
                f"--format {form} of {len(names)} sounds would be one mixed file; add --output "
                f"FOLDER"
            )
        return form or "text", None
    files.refuse_bucket(output, "give --output of this machine")
    target = Path(output)
    suffix = target.suffix
    if len(names) == 1 and suffix and not target.is_dir():
        if suffix not in SUFFIXES and form is None:
            raise ConfigError(
                f"--output {output} ends with none of {', '.join(SUFFIXES)}; add --format"
            )
        if not target.resolve().parent.is_dir():
            raise ConfigError(f"--output {output}: its folder does not exist; make it")
        return form or SUFFIXES[suffix], [target]
    if target.is_file():
        raise ConfigError(f"--output {output} is a file, but there are {len(names)} sounds")
    form = form or "text"
    ending = next((end for end, one in SUFFIXES.items() if one == form), ".txt")
    targets = [target / (Path(name).stem + ending) for name in names]
    if twice := [str(one) for one in targets if targets.count(one) > 1]:
        raise ConfigError(f"two sounds would be written to {twice[0]}; transcribe them apart")
    target.mkdir(parents=True, exist_ok=True)
    return form, targets


def _pieces(
    listened: Iterator[tuple[int, Segment | Transcript]], form: Format, names: list[str]
) -> Iterator[tuple[int, str, bool]]:
    """Yield (number of the sound, text to write, whether the sound is at its end)."""
    from jaxgen.text.tasks import subtitles
    from jaxgen.text.tasks.transcription import Transcript

    counts = dict.fromkeys(range(len(names)), 0)
    for number, item in listened:
        head = "" if counts[number] else subtitles.HEADS.get(form, "")
        counts[number] += 1
        if isinstance(item, Transcript):
            fields = {"file": names[number], "language": item.language, "duration": item.duration}
            fields |= {"text": item.text, "segments": [row._asdict() for row in item.segments]}
            line = f"{json.dumps(fields, ensure_ascii=False)}\n" if form == "json" else ""
            yield number, head + line, True
        else:
            yield number, head + subtitles.LINES[form](item, counts[number]), False


def _in_order(listened: Iterator[Any], form: Format, names: list[str]) -> Iterator[str]:
    """Yield what is written as it is heard, one sound after the other, each behind its name."""
    current, held, ended = 0, dict.fromkeys(range(len(names)), ""), set()
    if len(names) > 1 and form != "json":
        held = {number: f"{name}:\n" for number, name in enumerate(names)}
    for number, text, at_end in _pieces(listened, form, names):
        held[number] += text
        ended |= {number} if at_end else set()
        while current in held:
            yield held[current]
            held[current] = ""
            if current not in ended:
                break
            current += 1


def _gathered(
    listened: Iterator[Any], form: Format, names: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, all of its text) of each sound when it is at its end."""
    held: dict[int, list[str]] = {number: [] for number in range(len(names))}
    for number, text, at_end in _pieces(listened, form, names):
        held[number].append(text)
        if at_end:
            yield number, held.pop(number)
