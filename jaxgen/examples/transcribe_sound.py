"""Speech to text: write a WAV file, hear it with a Whisper model, and print subtitles.

Give a Whisper folder of the Hugging Face layout and sound files: `python transcribe_sound.py FOLDER
talk.wav`. Without them the program writes a sound of a few tones, and shows the steps below text:
its log-mel frames, and the memory that an encoder with random weights makes of them.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen.data.media import LogMel, read_sound, write_wav
from jaxgen.text.tasks import open_model
from jaxgen.text.tasks.subtitles import LINES
from jaxgen.text.tasks.transcription import Segment, listen

RATE = 22050  # of the file; models read 16000, to which it is resampled


def tones(seconds: float) -> np.ndarray:
    """Return samples of one tone after the other."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 220 * 2 ** np.floor(2 * time)
    return (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def show_steps(path: Path) -> None:
    """Print what becomes of a sound on its way to a decoder."""
    front = LogMel(chunk_length=2)
    frames = front(read_sound(path, front.sampling_rate))
    loudest = frames.argmax(axis=1)[[20, 70, 120]]
    print(f"{path.name}: {frames.shape[0]} frames of {frames.shape[1]} bins; loudest {loudest}")
    config = jaxgen.ModelConfig(
        vocab_size=64, context=32, layers=2, d_model=32, heads=4, topology="encoder_decoder",
        stem=jaxgen.Stem(kind="log_mel", channels=80, size=front.frames // 2),
    )  # fmt: skip
    params = jaxgen.init(config, jax.random.key(0))
    memory = jaxgen.encode(params, config, media=frames[None])
    prompt = np.ones((1, 1), np.int32)
    tokens = jaxgen.generate(params, config, prompt, jax.random.key(1), length=5, memory=memory)
    print(f"memory {memory.state.shape}; a decoder that was never trained writes {tokens[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="a Whisper model")
    parser.add_argument("sounds", nargs="*", type=Path)
    args = parser.parse_args()
    if args.folder is None:
        with tempfile.TemporaryDirectory() as home:
            write_wav(Path(home) / "tones.wav", tones(1.6), RATE)
            show_steps(Path(home) / "tones.wav")
        return
    model = open_model(args.folder)
    for _, one in listen(model, args.sounds):
        if isinstance(one, Segment):  # as it is heard; the whole transcript comes at the end
            print(LINES["vtt"](one, 0), end="")


if __name__ == "__main__":
    main()
