"""Generated texts on their way out: to the terminal, a file, or as JSON."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import ConfigError, UserError


def put(pieces: Iterable[str]) -> str:
    """Print a text piece by piece, as each comes, and return it.

    On a terminal, what would steer it is shown instead of obeyed.
    """
    from jaxgen.train.display import printable

    parts = []
    for piece in pieces:
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
        parts.append(piece)
    return "".join(parts)


def converse(what: str, answer: Callable[[int, str], None]) -> None:
    """Read lines from a terminal until Ctrl-D, and answer each: (its number from 0, the line).

    Ctrl-C ends an answer; at the prompt it ends the program. A refused line is told, no more.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    print(f"Type {what} and press Enter; Ctrl-D ends.", file=sys.stderr)
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
        if not line.strip():
            continue
        try:
            answer(turn, line)
        except KeyboardInterrupt:
            print()
        except UserError as error:
            print(f"\njaxgen: error: {error}", file=sys.stderr)
        turn += 1


def target(name: str) -> Path:
    """Return the path of --output, which can be written; ConfigError if it can't be."""
    files.refuse_bucket(name, "give --output of this machine")
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


def deliver(
    session: Any,
    prompts: Sequence[str],
    completions: Sequence[Sequence[Any]],
    to: Path | None,
    as_json: bool,
) -> None:
    """Print, or write whole, the completions of each prompt, or texts made of each source."""
    begun = not session.reads_sources  # whether a text goes on with its prompt
    rows = [
        (prompt, number, answer)
        for prompt, answers in zip(prompts, completions, strict=True)
        for number, answer in enumerate(answers, 1)
    ]
    if as_json:
        spell = speller(session.tokenizer)
        text = "".join(
            json.dumps(
                {"prompt": prompt, "sample": number} | describe(answer, spell), ensure_ascii=False
            )
            + "\n"
            for prompt, number, answer in rows
        )
    elif len(rows) == 1:
        text = f"{rows[0][0] * begun}{rows[0][2].text}\n"
    else:
        text = "".join(
            f"=== {i + 1} of {len(rows)}\n{prompt * begun}{answer.text}\n\n"
            for i, (prompt, _, answer) in enumerate(rows)
        )
    if to is None:
        put([text])
    elif to.is_file() or not to.exists():
        files.write(to, text)
        print(f"wrote {to}", file=sys.stderr)
    else:
        with files.refusals(to):
            to.write_text(text, encoding="utf-8")


def describe(answer: Any, spell: Callable[[int], str]) -> dict[str, Any]:
    """Return a completion as JSON's data; what was not asked for is left out."""
    tokens: list[dict[str, Any]] = [{"id": one, "text": spell(one)} for one in answer.tokens]
    for token, logprob in zip(tokens, answer.logprobs, strict=False):
        token["logprob"] = logprob
    for token, top in zip(tokens, answer.top, strict=False):
        if top:
            token["top"] = [{"id": a.id, "text": spell(a.id), "logprob": a.logprob} for a in top]
    completion: dict[str, Any] = {
        "completion": answer.text,
        "finish_reason": answer.reason.name.lower(),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.tokens),
    }
    if answer.score is not None:
        completion["score"] = answer.score
    if answer.drafted is not None:
        completion["guessed"], completion["accepted"] = answer.drafted
    if answer.rules:  # whose tokens are as they were drawn
        return completion | {"rules": list(answer.rules)}
    return completion | {"tokens": tokens}


def speller(tokenizer: Any) -> Callable[[int], str]:
    """Return what shows the text of one token."""
    surface = getattr(tokenizer, "surface", None)
    if surface is None:
        return lambda token: tokenizer.decode([token])
    return lambda token: surface.pieces[token].decode("utf-8", errors="replace")
