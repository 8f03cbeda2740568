"""`jaxgen generate`."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, paths, prompts, start
from jaxgen.cli.arguments import REAL, WHOLE
from jaxgen.errors import ConfigError, UserError

SEEDS = 2**64


Prompts = Annotated[
    list[str] | None,
    Parameter(
        name="--prompt",
        help="text to go on from; @FILE reads a file, - reads standard input; may be repeated",
        allow_leading_hyphen=True,
        consume_multiple=False,
    ),
]
Length = Annotated[
    int | None, WHOLE, Parameter(help="tokens to make; at most 128 if the context has room")
]
Temperature = Annotated[float, REAL, Parameter(help="0 takes the likeliest token")]
TopK = Annotated[int | None, WHOLE, Parameter(help="draw from the k likeliest tokens")]
TopP = Annotated[
    float | None, REAL, Parameter(help="draw from the likeliest tokens of this probability")
]
Seed = Annotated[int, WHOLE, Parameter(help="the same seed gives the same text")]
Samples = Annotated[int, WHOLE, Parameter(help="completions of each prompt")]
Output = Annotated[
    str | None, Parameter(help="write there instead; .jsonl gives a JSON object a line")
]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw; raises ConfigError for a value out of range."""

    length: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ConfigError(f"--max-new-tokens={self.length} must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"--temperature={self.temperature} must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k={self.top_k} must be at least 1; leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p={self.top_p} must be greater than 0 and at most 1")
        if not 0 <= self.seed < SEEDS:
            raise ConfigError(f"--seed={self.seed} must be at least 0 and less than 2^64")


def generate(
    run: Annotated[str, Parameter(help="a run folder, or its name in runs/")],
    /,
    *,
    prompt: Prompts = None,
    max_new_tokens: Length = None,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    samples: Samples = 1,
    output: Output = None,
) -> None:
    """Complete prompts with a trained model; the text appears while it is made.

    On a terminal and without --prompt, each line typed is completed (the nth with
    seed + n - 1) until Ctrl-D. Without a terminal the prompt is standard input.
    Several prompts or samples are made as one batch.

    For example:
        jaxgen generate runs/quickstart --prompt "Return True if the"
        jaxgen generate quickstart --prompt @start.txt --max-new-tokens 200
        echo "The import statement" | jaxgen generate quickstart --temperature 0.7
        jaxgen generate quickstart --prompt def --prompt class --samples 3
    """
    sampling = Sampling(
        length=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    if samples < 1:
        raise ConfigError(f"--samples={samples} must be at least 1")
    folder = paths.run_folder(run)
    target = None if output is None else _checked_output(output)
    talking = not prompt and sys.stdin.isatty()
    if talking and (target or samples > 1):
        raise ConfigError("--output and --samples need a --prompt, or standard input from a file")
    texts = [] if talking else prompts.gather(prompt or ())
    start.prepare_jax(paths.cache())
    from jaxgen.text import complete

    with exits.in_folder(folder):
        session = complete.open_run(folder)
        if talking:
            _converse(session, sampling)
        elif len(texts) == samples == 1 and target is None:
            _stream(session, texts[0], sampling)
        else:
            made = session.complete(texts, samples=samples, **asdict(sampling))
            pairs = [(text, i + 1) for text in texts for i in range(samples)]
            _deliver([(*pair, text) for pair, text in zip(pairs, made, strict=True)], target)


def _stream(session: Any, prompt: str, sampling: Sampling) -> None:
    """Print the prompt and its completion, piece by piece."""
    pieces = session.stream(prompt, **asdict(sampling))
    first = next(pieces, "")  # a prompt that is refused must not be printed
    _put(prompt)
    _put(first)
    for piece in pieces:
        _put(piece)
    _put("\n")


def _converse(session: Any, sampling: Sampling) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    print("Type the beginning of a text and press Enter; Ctrl-D ends.", file=sys.stderr)
    turn = 0
    while True:
        try:
            line = input("> ")
            line.encode()
        except EOFError:
            print()
            return
        except UnicodeError:
            print("jaxgen: error: that line is not UTF-8", file=sys.stderr)
            continue
        if not line:
            continue
        try:
            _stream(session, line, replace(sampling, seed=(sampling.seed + turn) % SEEDS))
        except KeyboardInterrupt:  # enough of this one; a second Ctrl-C, at the prompt, leaves
            print()
        except UserError as error:
            print(f"\njaxgen: error: {error}", file=sys.stderr)
        turn += 1


def _put(text: str) -> None:
    if sys.stdout.isatty():
        from jaxgen.train.display import printable

        text = printable(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _checked_output(name: str) -> Path:
    """Return the path of --output, which can be written; ConfigError if it can't."""
    path = Path(name)
    if not name or path.is_dir():
        raise ConfigError(f"--output {name!r} is a folder, not a file; name a file in it")
    if path.exists() and not path.is_file():
        return path  # a device or a pipe: nothing to try without writing
    path = path.resolve()
    draft = path.parent / f"{files.TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        draft.touch()
        draft.unlink()
        if path.exists():
            path.open("r+b").close()
    except OSError as error:
        raise ConfigError(f"--output {name} can't be written: {error.strerror or error}") from None
    return path


def _deliver(rows: Sequence[tuple[str, int, str]], target: Path | None) -> None:
    """Print or write (prompt, number of the sample, completion) rows."""
    if target is not None and target.suffix == ".jsonl":
        keys = ("prompt", "sample", "completion")
        objects = (dict(zip(keys, row, strict=True)) for row in rows)
        text = "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects)
    elif len(rows) == 1:
        text = f"{rows[0][0]}{rows[0][2]}\n"
    else:
        text = "".join(
            f"=== {i + 1} of {len(rows)}\n{prompt}{completion}\n\n"
            for i, (prompt, _, completion) in enumerate(rows)
        )
    if target is None:
        _put(text)
    elif target.is_file() or not target.exists():
        files.write(target, text)
        print(f"wrote {target}", file=sys.stderr)
    else:
        with files.refusals(target):
            target.write_text(text, encoding="utf-8")
