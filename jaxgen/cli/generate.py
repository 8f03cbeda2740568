"""`jaxgen generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaxgen.cli import exits, flags, inputs, outputs, paths, profiles, start, texts
from jaxgen.cli.arguments import Adapters, Step
from jaxgen.cli.flags import Settings
from jaxgen.config import Weights
from jaxgen.errors import ConfigError
from jaxgen.text.request import SEEDS, Generation

Prompts = Annotated[
    list[str] | None,
    Parameter(
        name="--prompt",
        help="text to go on from; @FILE reads a file, - reads standard input; may be repeated",
        allow_leading_hyphen=True,
        consume_multiple=False,
    ),
]
Lines = Annotated[
    str | None,
    Parameter(
        help="a .jsonl file: a prompt a line, with settings of its own, as in max_new_tokens"
    ),
]
Output = Annotated[
    str | None, Parameter(help="write there instead; .jsonl gives a JSON object a line")
]
Profile = Annotated[
    bool, Parameter(help="make the texts once more, traced, and say what took their time")
]
Rounding = Annotated[
    Weights,
    Parameter(
        help="int8: a byte a weight, faster where one text is made; texts may differ; "
        "stored: integers of GGUF (Q8_0) and of compressed-tensors as they are, in less memory"
    ),
]
Json = Annotated[
    bool, Parameter(help="print JSON: text, tokens, log-probabilities, scores, why it ended")
]


def generate(
    run: texts.Folder,
    /,
    *,
    prompt: Prompts = None,
    prompts_file: Lines = None,
    output: Output = None,
    json: Json = False,
    profile: Profile = False,
    weights: Rounding = "plain",
    step: Step = None,
    adapter: Adapters = (),
    settings: Settings = None,
) -> None:
    """Complete prompts with a trained model; the text appears while it is made.

    On a terminal and without --prompt, each line typed is completed (the nth with
    seed + n - 1) until Ctrl-D. Without a terminal the prompt is standard input.
    Several prompts or samples are made as one batch; an encoder-decoder reads the
    prompt and writes a text of its own, which stands alone.

    For example:
        jaxgen generate runs/quickstart --prompt "Return True if the"
        jaxgen generate quickstart --prompt @start.txt --max-new-tokens 200
        echo "The import statement" | jaxgen generate quickstart --temperature 0.7
        jaxgen generate quickstart --prompt def --prompt class --samples 3
        jaxgen generate quickstart --prompt "The" --beams 4 --n-best 2 --json
        jaxgen generate quickstart --prompt "Raises " --choices KeyError --choices OSError
    """
    wanted = flags.settings_of(settings)
    folder, which, adapters = paths.adapted(run, step, adapter)
    target = None if output is None else outputs.target(output)
    talking = not prompt and prompts_file is None and sys.stdin.isatty()
    if talking and (target or json or profile or wanted.samples > 1):
        raise ConfigError(
            "--output, --json, --profile and --samples need a --prompt, or standard input from a "
            "file"
        )
    as_json = json or (target is not None and target.suffix == ".jsonl")
    if wanted.top_logprobs is not None and not as_json:
        raise ConfigError(
            f"--top-logprobs={wanted.top_logprobs} has no effect without --json; give --json"
        )
    lines = _lines(prompt, prompts_file, wanted, talking)
    start.prepare_jax(paths.cache())
    from jaxgen.text import session as sessions

    with exits.in_folder(folder), flags.named():
        traces = profiles.trace_folder(folder) if profile else None
        session = sessions.open_session(folder, step=which, weights=weights, adapter=adapters)
        texts.tell_defaults(wanted, session.model.generation_config)
        if talking:
            _converse(session, wanted)
            return
        again = _make(session, lines, wanted, target, as_json)
        if traces is not None:
            profiles.show(again, traces)


def _make(
    session: Any,
    lines: list[tuple[str, Generation]],
    wanted: Generation,
    target: Path | None,
    as_json: bool,
) -> Callable[[], object]:
    """Make all texts and hand them out; return what makes them once more."""
    if len(lines) == 1 and target is None and not as_json and _has_one_text(lines[0][1]):
        _stream(session, *lines[0])
        return lambda: [*session.stream(*lines[0])]
    again = partial(session.run, _prompts(lines, wanted), detail=as_json)
    outputs.deliver(session, [line[0] for line in lines], again(), target, as_json)
    return again


def _lines(
    prompt: list[str] | None, prompts_file: str | None, wanted: Generation, talking: bool
) -> list[tuple[str, Generation]]:
    if prompts_file is not None and prompt:
        raise ConfigError(
            f"--prompts-file={prompts_file} and --prompt={prompt[0]} exclude each other; drop one"
        )
    if prompts_file is not None:
        return inputs.prompts_file(prompts_file, wanted)  # whose keys are no options
    return [] if talking else [(text, wanted) for text in inputs.prompts(prompt or ())]


def _prompts(lines: list[tuple[str, Generation]], wanted: Generation) -> list[Any]:
    """What is asked of the session: texts of one seed have a number each, in their order.

    A line with a seed of its own counts from 0, so that its texts don't depend on the lines before.
    """
    from jaxgen.text.session import Prompt

    prompts, number = [], 0
    for text, settings in lines:
        own = settings.seed != wanted.seed
        prompts.append(Prompt(text, settings, 0 if own else number))
        number += 0 if own else settings.draws_each
    return prompts


def _has_one_text(settings: Generation) -> bool:
    return settings.samples == 1 and (settings.n_best or 1) == 1


def _stream(session: Any, prompt: str, wanted: Generation) -> None:
    """Print the prompt and its completion, or what is made of a source, piece by piece."""
    pieces = session.stream(prompt, wanted)
    first = next(pieces, "")  # a prompt that is refused must not be printed
    begun = () if session.reads_sources else (prompt,)
    outputs.put(chain(begun, (first,), pieces, "\n"))


def _converse(session: Any, wanted: Generation) -> None:
    def answer(turn: int, line: str) -> None:
        _stream(session, line, replace(wanted, seed=(wanted.seed + turn) % SEEDS))

    outputs.converse("the beginning of a text", answer)
