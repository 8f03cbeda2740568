"""The `jaxgen` command: reads the command line, then calls one verb.

The line is parsed before JAX is imported, so that help and mistakes answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from cyclopts import App, CycloptsError, Parameter

import jaxgen
from jaxgen.cli import (
    answer,
    ask,
    attack,
    audit,
    augment,
    bench,
    bias,
    caption,
    card,
    chat,
    classify,
    compress,
    convert,
    doctor,
    embed,
    examples,
    exits,
    explain,
    fill_mask,
    forget,
    generate,
    index,
    init,
    ladder,
    measure,
    merge,
    mistakes,
    moderate,
    plan,
    quickstart,
    report,
    score,
    serve,
    tokenize,
    train,
    transcribe,
    translate,
    tutor,
    verify,
)
from jaxgen.cli import eval as evaluation
from jaxgen.cli.sheet import HelpFormatter

ABOUT = """Train Transformers on text and generate with them, in JAX.

First steps:
    jaxgen quickstart                train a small model on Python's own docs
    jaxgen generate runs/quickstart  type prompts, and see them completed

Your own text:
    jaxgen train my.txt              into runs/my; the same command resumes it
    jaxgen init                      my.yaml, a commented config to edit
    jaxgen train my.yaml train.steps=100 model.layers=6
                                     any key of the config can be overridden
    jaxgen train --keys              every key, its default and its meaning
    jaxgen eval runs/my              loss, perplexity and bits per byte
    jaxgen convert runs/my out --to hf   a folder that transformers opens

A run folder holds all that is needed to use the model elsewhere: config.yaml,
tokenizer, checkpoints/, metrics.jsonl, samples/, loss.png. Prepared text and
compiled programs are kept in $JAXGEN_CACHE, or else in ~/.cache/jaxgen; that
folder may be removed at any time.

Exit codes: 0 done, 1 what verify checks does not hold, 2 usage or config,
3 environment or busy, 4 checkpoint or model file, 5 another
process of the run is lost, 6 numbers not finite, 7 data,
70 bug, 75 stopped and saved (the same command resumes), 130 interrupted.
"""
VERBS = (
    (quickstart.quickstart, "quickstart", "[KEY=VALUE ...] [--out DIR]"),
    (train.train, "train", "TEXT|CONFIG|RUN [TEXT ...] [KEY=VALUE ...] [OPTIONS]"),
    (init.init, "init", "[TASK] [FILE ...] [--out my.yaml]"),
    (generate.generate, "generate", "RUN [OPTIONS]"),
    (evaluation.evaluate, "eval", "RUN|MODEL [data.files=TEXT] [OPTIONS]"),
    (convert.convert, "convert", "SOURCE OUT --to hf|jaxgen [OPTIONS]"),
    (compress.compress, "compress", "MODEL --recipe NAME|FILE --out DIR [--data TEXT]"),
    (ladder.ladder, "ladder", "MODEL --recipes A,B,C --out DIR [OPTIONS]"),
    (merge.merge, "merge", "MODEL [ADAPTER ...] OUT [OPTIONS]"),
    (forget.forget, "forget", "USER [--users DIR]"),
    (report.report, "report", "RUN [RUN ...] [OPTIONS]"),
    (card.card, "card", "RUN [--license NAME] [--reviewed ITEM=NOTE ...] [--out FILE]"),
    (audit.audit, "audit", "RUN [--shadows N] [OPTIONS]"),
    (attack.attack, "attack", "RUN --data FILE [OPTIONS]"),
    (augment.augment, "augment", "FILE --kind KIND [--copies N] [OPTIONS]"),
    (explain.explain, "explain", "RUN --prompt TEXT [--target TEXT] [OPTIONS]"),
    (measure.measure, "measure", "TEXTS [--references FILE] [OPTIONS]"),
    (translate.translate, "translate", "RUN [TEXT ...] [OPTIONS]"),
    (translate.summarize, "summarize", "RUN [TEXT ...] [OPTIONS]"),
    (caption.caption, "caption", "MODEL IMAGE [IMAGE ...] [OPTIONS]"),
    (transcribe.transcribe, "transcribe", "MODEL SOUND [SOUND ...] [OPTIONS]"),
    (answer.answer, "answer", "RUN [QUESTION ...] --context TEXT [OPTIONS]"),
    (index.index, "index", "DOCS [DOCS ...] --out INDEX [OPTIONS]"),
    (index.search, "search", "INDEX [QUESTION ...] [OPTIONS]"),
    (ask.ask, "ask", "RUN INDEX [QUESTION ...] [OPTIONS]"),
    (ask.calibrate, "calibrate", "INDEX QUESTIONS.jsonl [OPTIONS]"),
    (chat.chat, "chat", "RUN [MESSAGE ...] [OPTIONS]"),
    (serve.serve, "serve", "MODEL [MODEL ...] [--port 8000] [OPTIONS]"),
    (tutor.tutor, "tutor", "EXERCISES.yaml [MODEL] [OPTIONS]"),
    (classify.classify, "classify", "RUN [TEXT ...] [OPTIONS]"),
    (moderate.moderate, "moderate", "FILE --policy POLICY.yaml [OPTIONS]"),
    (bias.bias, "bias", "MODEL FILE [OPTIONS]"),
    (fill_mask.fill_mask, "fill-mask", "RUN [TEXT ...] [OPTIONS]"),
    (embed.embed, "embed", "RUN [TEXT ...] [OPTIONS]"),
    (score.score, "score", "RUN [TEXT ...] [OPTIONS]"),
    (tokenize.tokenize, "tokenize", "CONFIG [KEY=VALUE ...]"),
    (doctor.doctor, "doctor", "[RUN|CONFIG] [KEY=VALUE ...] [--json]"),
    (plan.plan, "plan", "[CONFIG] [KEY=VALUE ...] [--topology CHIP:SHAPE]"),
    (bench.bench, "bench", "[NAME ...] [OPTIONS]"),
    (examples.examples, "examples", "[NAME ...] [--out DIR]"),
)


def _default(value: Any) -> Any:
    """Return what `--help` shows as a default: nothing for what stands for "not given"."""
    return None if value is None or value is False or value in ("", ()) else value


def make_app() -> App:
    """Return the command with its verbs."""
    looks: dict[str, Any] = {
        "help_format": "plaintext",
        "help_formatter": HelpFormatter(),
        "default_parameter": Parameter(negative=(), show_default=_default),
    }
    app = App(
        name="jaxgen",
        help=ABOUT,
        version=f"jaxgen {jaxgen.__version__}",
        **looks,
    )
    for order, (verb, name, usage) in enumerate(VERBS):
        app.command(verb, name=name, sort_key=order, usage=f"Usage: jaxgen {name} {usage}")
    app.command(verify.make_verify(sort_key=len(VERBS), **looks))

    def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
        """Print what makes a shell complete verbs and options at the Tab key.

        For example:
            source <(jaxgen completion bash)           in ~/.bashrc; zsh alike
            jaxgen completion fish | source            in config.fish
        """
        print(app.generate_completion(shell=shell), end="")

    app.command(completion, sort_key=len(VERBS) + 1, usage="Usage: jaxgen completion SHELL")
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; SystemExit of a verb passes through.

    argv: the words after "jaxgen"; None takes those of the process. Errors are said in one line
    on standard error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    exits.steady_streams()
    try:
        call = _parse(words)
        code = call()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit:
        exits.flush_output()  # else Python would turn the code into 120 if the reader has gone
        raise
    except BaseException as error:  # KeyboardInterrupt too, and the panics of Rust extensions
        return exits.report(error)


def _parse(words: list[str]):
    app = make_app()
    try:
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise mistakes.explain(error, list(app)) from None
    return partial(command, *bound.args, **bound.kwargs)
