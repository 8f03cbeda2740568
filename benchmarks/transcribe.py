"""Speech to text beside transformers and faster-whisper, one recording after the other, in turn.

    python benchmarks/whisper_base.py PACKAGES whisper-base     # once; see there
    apt-get download pocketsphinx-testdata; dpkg -x pocketsphinx-testdata*.deb testdata
    python benchmarks/transcribe.py whisper-base testdata/usr/share/pocketsphinx/test/data

`--ct2 PACKAGES` joins the packages' own model for faster-whisper (pip install faster-whisper). It
writes results/transcribe.json: words in error, ids beside transformers', and seconds of each side.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sides
from whisper_base import parts

from jaxgen.data.media import read_sound
from jaxgen.text.loaded_model import open_model
from jaxgen.text.tasks.transcription import Speech, transcribe

SETS = {"librivox": "transcription", "cards": "cards.transcription"}
OURS, TORCH, CT2 = "jaxgen", "transformers", "faster-whisper"
STEERING = range(50257, 50364)  # ids that begin and end a text


def recordings(home: Path) -> dict[Path, str]:
    """Return {sound file: what is said in it}."""
    found = {}
    for folder, name in SETS.items():
        for line in (home / folder / name).read_text().splitlines():
            if match := re.match(r"<s>(.*)</s> \((.*)\)", line):
                found[home / folder / f"{match[2]}.wav"] = match[1].strip()
    return found


def words(text: str) -> list[str]:
    """Return lower-case words without marks."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("mr.", "mister")).split()


def errors(heard: list[str], said: list[str]) -> int:
    """Return the least number of words to change, add or drop."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        before, row = row, [i]
        for j, other in enumerate(said, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


def ours(folder: Path) -> Any:
    model, how = open_model(folder), Speech(language="en", temperatures=(0.0,))

    def hear(samples: np.ndarray) -> tuple[str, list[int]]:
        (one,) = transcribe(model, [samples], how)
        return one.text, [i for segment in one.segments for i in segment.tokens]

    return hear


def theirs(folder: Path) -> Any:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    sides.threads()
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    reader = WhisperProcessor.from_pretrained(folder)
    how = {"language": "en", "task": "transcribe", "return_timestamps": True}

    def hear(samples: np.ndarray) -> tuple[str, list[int]]:
        frames = reader(samples, sampling_rate=16000, return_tensors="pt").input_features
        ids = model.generate(frames, **how)[0].tolist()
        return reader.decode(ids, skip_special_tokens=True), [i for i in ids if i not in STEERING]

    return hear


def faster(packages: Path, home: Path) -> Any:
    from faster_whisper import WhisperModel

    small, raw = parts(packages)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copyfile(small / name, home / name)
    (home / "model.bin").write_bytes(raw)
    how = {"device": "cpu", "compute_type": "float32", "cpu_threads": sides.threads()}
    model = WhisperModel(str(home), **how)
    how = {"language": "en", "beam_size": 1, "temperature": 0.0}
    how |= {"condition_on_previous_text": False}

    def hear(samples: np.ndarray) -> tuple[str, list[int]]:
        segments = list(model.transcribe(samples, **how)[0])
        return "".join(one.text for one in segments), [i for one in segments for i in one.tokens]

    return hear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ct2", type=Path, help="folder of the two packages")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sounds", type=int, help="the first ones alone")
    args = parser.parse_args()
    known = dict(list(recordings(args.data).items())[: args.sounds])
    sounds = {path: read_sound(path) for path in known}
    with tempfile.TemporaryDirectory() as home:
        readers = {OURS: ours(args.folder), TORCH: theirs(args.folder)}
        if args.ct2 is not None:
            readers[CT2] = faster(args.ct2, Path(home))
        heard = {name: [hear(x) for x in sounds.values()] for name, hear in readers.items()}
        calls = {
            name: lambda hear=hear: [hear(x) for x in sounds.values()]
            for name, hear in readers.items()
        }
        seconds = sides.in_turn(calls, args.rounds, pause=sides.PAUSE)
    rows = []
    for number, (path, said) in enumerate(known.items()):
        texts = {name: heard[name][number][0].strip() for name in readers}
        wrong = {name: errors(words(text), words(said)) for name, text in texts.items()}
        equal = heard[OURS][number][1] == heard[TORCH][number][1]
        rows.append({"sound": path.name, "said": said, "ids_equal": equal, "errors": wrong} | texts)
    result = {
        "seconds_of_sound": round(sum(len(x) for x in sounds.values()) / 16000, 2),
        "seconds": {name: sides.figures(own) for name, own in seconds.items()},
        "times_as_long": {n: sides.ratio(seconds, n, OURS) for n in readers if n != OURS},
        "ids_equal": sum(row["ids_equal"] for row in rows),
        "sounds": rows,
    }
    sides.write("transcribe", result | {"environment": sides.environment()})


if __name__ == "__main__":
    main()
