"""`jaxgen index` and `jaxgen search`."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import inputs, outputs, paths, start
from jaxgen.cli.arguments import at_least
from jaxgen.errors import ConfigError, DataError

Home = Annotated[str, Parameter(help="a folder that `jaxgen index` has written")]
Count = Annotated[int, at_least(1), Parameter(name="--passages", help="passages at most")]
Verify = Annotated[
    Literal["full", "off"],
    Parameter(help="compare every byte of the index with its checksum, or sizes alone"),
]
Encoder = Annotated[
    str | None, Parameter(help="the encoder of the index, where it has moved: a model's folder")
]
Documents = Annotated[
    str | None,
    Parameter(
        name="--index",
        help="an index of documents (`jaxgen index`), whose passages come before a message",
    ),
]
Method = Annotated[
    Literal["hybrid", "bm25", "dense"] | None,
    Parameter(help="by words, by vectors or by both; default hybrid where there are vectors"),
]


def index(
    docs: Annotated[str, Parameter(help="documents: a file or a folder of text, or a glob")],
    /,
    *more: Annotated[str, Parameter(help="further documents")],
    out: Annotated[str, Parameter(name="--out", help="folder of the index")],
    encoder: Annotated[
        str | None,
        Parameter(help="a model that embeds passages, as of `jaxgen embed`; none: words alone"),
    ] = None,
    size: Annotated[int, at_least(1), Parameter(help="characters of a passage at most")] = 800,
    overlap: Annotated[
        int, at_least(0), Parameter(help="characters that neighbours share at most")
    ] = 160,
    field: Annotated[str, Parameter(help="key of the text in .jsonl and .parquet files")] = "text",
    on_bad_record: Annotated[
        Literal["stop", "skip"],
        Parameter(help="a malformed file or record: end, or leave it out"),
    ] = "stop",
    batch: Annotated[
        int | None, at_least(1), Parameter(help="passages to embed at once; default 32")
    ] = None,
) -> None:
    """Make an index of documents, which search, ask, chat and serve look into.

    Documents are cut into passages at headings and sentences, found by their words
    (BM25) and, with --encoder, by what they mean. The same command brings an index
    up to date: passages that it has embedded already are not embedded again. The
    text is kept in it, so that the documents may move.

    For example:
        jaxgen index docs --out docs.index
        jaxgen index notes/*.md papers.jsonl --out my.index --encoder models/minilm
    """
    for name, value in (("--out", out), ("--encoder", encoder)):
        if value is not None and not value.strip():
            raise ConfigError(f"{name} {value!r} is empty; name a folder")
    if batch is not None and encoder is None:
        raise ConfigError(f"--batch {batch} has no effect without --encoder; drop it")
    paths.check_folder(out)
    if encoder is not None:
        encoder = _model(encoder)
    start.prepare_jax(paths.cache())
    from jaxgen.knowledge.index import build
    from jaxgen.run.progress import bar

    how: dict[str, Any] = {"size": size, "overlap": overlap, "field": field}
    how |= {"encoder": encoder, "on_bad_record": on_bad_record}
    how |= {} if batch is None else {"batch": batch}
    try:
        with bar("embedding" if encoder else "indexing") as progress:
            built = build([docs, *more], out, progress=progress, **how)
    except DataError as error:
        text = str(error).replace("data.on_bad_record=skip", "--on-bad-record skip")
        raise DataError(re.sub(r"data\.files ", "", text)) from error
    except ConfigError as error:
        raise ConfigError(str(error).replace("field=", "--field ")) from error
    counts = [("documents", f"{built.documents:,}"), ("passages", f"{built.passages:,}")]
    if encoder is not None:
        counts += [("embedded", f"{built.embedded:,}, the rest was there")]
    terminal.print_rows([("index", out), *counts])


def search(
    index: Home,
    /,
    *question: Annotated[str, Parameter(help="a question; none: the lines of standard input")],
    count: Count = 5,
    method: Method = None,
    exact: Annotated[bool, Parameter(help="compare all vectors, not the nearest lists")] = False,
    json: Annotated[bool, Parameter(help="print an object a passage")] = False,
    encoder: Encoder = None,
    verify: Verify = "full",
) -> None:
    """Find the passages of an index that fit a question best.

    Each is shown with its score, its document, and where it stands there, counted
    in characters; the encoder of the index embeds the question.

    For example:
        jaxgen search docs.index "How is an exception raised?"
        jaxgen search docs.index "raise" --method bm25 --passages 3 --json
    """
    opened = open_index(index, encoder, verify)
    for heading, words in headed(inputs.texts(question, None)):
        try:
            hits = opened.search(words, count, method=method, exact=exact)
        except ConfigError as error:
            raise ConfigError(str(error).replace("method=", "--method ")) from error
        outputs.put([heading * (not json)])
        if not hits:
            terminal.say(f"no passage of the index fits {words!r:.80}")
        for hit in hits:
            if json:
                outputs.put([json_format.dumps(hit._asdict(), ensure_ascii=False) + "\n"])
                continue
            where = f"{hit.document}:{hit.start}-{hit.end}"
            outputs.put([f"{hit.score:.4f}  {where}\n{_indented(hit.shown)}\n\n"])


def headed(questions: Sequence[str]) -> list[tuple[str, str]]:
    """Return (heading, question) of each; of a single one the heading is empty."""
    several = len(questions)
    return [
        (f"=== {n} of {several}: {question}\n" if several > 1 else "", question)
        for n, question in enumerate(questions, 1)
    ]


def open_index(home: str, encoder: str | None = None, verify: Literal["full", "off"] = "full"):
    """Return the index of a folder, JAX being set up."""
    if not home.strip():
        raise ConfigError("the name of the index is empty; name a folder")
    encoder = None if encoder is None else _model(encoder)
    start.prepare_jax(paths.cache())
    from jaxgen.knowledge import index

    return index.open_index(Path(home), encoder=encoder, verify=verify)


def _model(word: str) -> str:
    folder, step = paths.model(word, None)
    return str(folder if step is None else folder / "checkpoints" / f"{step:08}")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else "" for line in text.splitlines())
