"""Generated texts on their way out: to the terminal, a file, or as JSON."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import ConfigError


def put(text: str) -> None:
    """Print a text at once; on a terminal, what would steer it is shown instead of obeyed."""
    if sys.stdout.isatty():
        from jaxgen.train.display import printable

        text = printable(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def target(name: str) -> Path:
    """Return the path of --output, which can be written; ConfigError if it can't be."""
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
    asked: Sequence[str],
    made: Sequence[Sequence[Any]],
    to: Path | None,
    as_json: bool,
) -> None:
    """Print, or write whole, the answers to each prompt."""
    rows = [
        (prompt, number, answer)
        for prompt, answers in zip(asked, made, strict=True)
        for number, answer in enumerate(answers, 1)
    ]
    if as_json:
        spell = speller(session.tokenizer)
        objects = (_object(*row, spell) for row in rows)
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
    elif len(rows) == 1:
        text = f"{rows[0][0]}{rows[0][2].text}\n"
    else:
        text = "".join(
            f"=== {i + 1} of {len(rows)}\n{prompt}{answer.text}\n\n"
            for i, (prompt, _, answer) in enumerate(rows)
        )
    if to is None:
        put(text)
    elif to.is_file() or not to.exists():
        files.write(to, text)
        print(f"wrote {to}", file=sys.stderr)
    else:
        with files.refusals(to):
            to.write_text(text, encoding="utf-8")


def _object(prompt: str, number: int, answer: Any, spell: Any) -> dict[str, Any]:
    return {"prompt": prompt, "sample": number} | describe(answer, spell)


def describe(answer: Any, spell: Callable[[int], str]) -> dict[str, Any]:
    """Return a completion as JSON's data; what was not asked for is left out."""
    tokens: list[dict[str, Any]] = [{"id": one, "text": spell(one)} for one in answer.tokens]
    for token, logprob in zip(tokens, answer.logprobs, strict=False):
        token["logprob"] = logprob
    for token, top in zip(tokens, answer.top, strict=False):
        if top:
            token["top"] = [{"id": a.id, "text": spell(a.id), "logprob": a.logprob} for a in top]
    found: dict[str, Any] = {
        "completion": answer.text,
        "finish_reason": answer.reason.name.lower(),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.tokens),
    }
    if answer.score is not None:
        found["score"] = answer.score
    if answer.drafted is not None:
        found["guessed"], found["accepted"] = answer.drafted
    return found | {"tokens": tokens}


def speller(tokenizer: Any) -> Callable[[int], str]:
    """Return what shows the text of one token."""
    surface = getattr(tokenizer, "surface", None)
    if surface is None:
        return lambda token: tokenizer.decode([token])
    return lambda token: surface.pieces[token].decode("utf-8", errors="replace")
