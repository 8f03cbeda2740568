"""`jaxgen bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from cyclopts import Parameter

import jaxgen
from jaxgen import files
from jaxgen.errors import BusyError, ConfigError, nearest


class Bench(NamedTuple):
    """A script of benchmarks/, its arguments in full, and those of a run of seconds."""

    script: str
    full: tuple[str, ...]
    brief: tuple[str, ...]
    needs: tuple[str, ...] = ("torch",)


def _shape(name: str) -> Bench:
    tiny = ("--shape", "tiny", "--rounds", "3", "--sides", "jaxgen", "torch eager")
    return Bench("train_step.py", ("--shape", name), tiny)


def _decode(*modes: str, full: tuple[str, ...] = ()) -> Bench:
    tiny = ("--size", "tiny", "--rounds", "3", "--length", "8", "--batches", "1", "--modes", *modes)
    return Bench("decode.py", ("--modes", *modes, *full), tiny, ("torch", "transformers"))


def _tiny(script: str, *needs: str) -> Bench:
    return Bench(script, (), ("--size", "tiny", "--rounds", "2"), needs)


BENCHES = {
    "train": _shape("gpt2-6x384"),
    "train-llama": _shape("llama-8x512"),
    "train-encoder-decoder": _shape("encoder-decoder-4x384"),
    "train-gpt2-124m": _shape("gpt2-124m"),
    "decode": _decode("greedy", "sampled"),
    "decode-beams": _decode("beams"),
    "prefill": _decode("prefill", full=("--prompt", "512")),
    "first-token": _tiny("first_token.py", "torch", "transformers"),
    "beams": _tiny("beams.py", "torch", "transformers"),
    "checkpoint": _tiny("checkpoint.py", "torch"),
    "loader": _tiny("loader.py", "torch", "tokenizers"),
    "scaling": _tiny("scaling.py"),
}
FOLDER = "benchmarks"


def bench(
    *names: Annotated[str, Parameter(help="which; all of them if none is named")],
    length: Annotated[
        Literal["full", "brief"], Parameter(help="brief: tiny models, to see that it runs")
    ] = "full",
    out: Annotated[str | None, Parameter(help="folder for the results, as JSON")] = None,
) -> None:
    """Time training and decoding against PyTorch on this machine.

    Both sides begin with the same weights, their logits are compared first, and
    they are timed in turn. Results go to benchmarks/results beside the source,
    from an installed package to ./results; so does what the machine could do.
    It needs torch and transformers: pip install "jaxgen[bench]".

    There are train, train-llama, train-encoder-decoder, train-gpt2-124m, decode,
    decode-beams, prefill, first-token, checkpoint, loader and beams: those of an
    encoder-decoder, against CTranslate2 as well where that is installed; scaling
    has no peer: how a step grows with length, batch, layers, width and vocabulary.
    For example:
        jaxgen bench --length brief
        jaxgen bench train decode --out results/laptop
    """
    for name in names:
        if name not in BENCHES:
            hint = nearest(name, BENCHES) or f"; there are {', '.join(BENCHES)}"
            raise ConfigError(f"{name}: no such benchmark{hint}")
    scripts, results = _places(out)
    chosen = {name: BENCHES[name] for name in names or BENCHES}
    lacking = {p for one in chosen.values() for p in one.needs if find_spec(p) is None}
    if lacking:
        raise BusyError(
            f"{', '.join(sorted(lacking))} not installed; add the peers with "
            f'pip install "jaxgen[bench]"'
        )
    for name, one in chosen.items():
        words = one.full if length == "full" else one.brief
        print(f"jaxgen bench {name}: {one.script} {' '.join(words)}", file=sys.stderr, flush=True)
        environment = dict(os.environ) | {"JAXGEN_RESULTS": str(results)}
        command = [sys.executable, str(scripts / one.script), *words]
        code = subprocess.run(command, env=environment).returncode  # noqa: S603  our own script
        if code:
            raise BusyError(f"{name}: {one.script} ended with {code}; its last lines say why")
    print(f"results: {results}")


def _places(out: str | None) -> tuple[Path, Path]:
    """Return (folder of the scripts, folder of the results)."""
    files.refuse_bucket(out or "", "give --out of this machine")
    package = Path(jaxgen.__file__).parent
    source, packed = package.parent / FOLDER, package / FOLDER
    if (source / "sides.py").is_file():
        return source, (source / "results" if out is None else Path(out).absolute())
    return packed, Path(out or "results").absolute()
