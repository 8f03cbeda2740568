"""`jaxgen classify`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen.cli import inputs, texts
from jaxgen.errors import ConfigError
from jaxgen.text import tasks

Pairs = Annotated[
    bool, Parameter(help="each text is two, parted by a tab: a premise and a claim, say")
]
Aggregation = Annotated[
    Literal["none", "simple", "first", "average", "max"] | None,
    Parameter(help="what a model that labels tokens joins: transformers' names; simple if absent"),
]


def classify(
    run: texts.Folder,
    /,
    *text: texts.Texts,
    pairs: Pairs = False,
    aggregation: Aggregation = None,
    job: texts.Read = texts.READ_JOB,
) -> None:
    """Tell the class of each text, with its probability, or the named entities in it.

    Entities are found by a model that labels each token (BertForTokenClassification
    and the like); a .jsonl file holds their characters as well.

    For example:
        jaxgen classify runs/classify "What a wonderful film."
        jaxgen classify runs/classify --input reviews.txt --output classes.jsonl
        jaxgen classify downloads/bert-ner "Ada Lovelace lived in London."
    """
    items = inputs.texts(text, job.input)
    if pairs:
        if odd := next((one for one in items if one.count("\t") != 1), None):
            raise ConfigError(f"--pairs: {odd[:40]!r} has not one tab between its two texts")
        items = [tuple(one.split("\t")) for one in items]

    def work(model, items, progress):
        how: dict[str, Any] = {"batch": job.batch, "overflow": job.overflow, "progress": progress}
        if model.config.head != "token_classes":
            if aggregation is not None:
                raise ConfigError(
                    f"--aggregation {aggregation} has no effect: the model has no class for each "
                    f"token; drop it"
                )
            return tasks.classify(model, items, **how)
        if pairs:
            raise ConfigError("--pairs has no effect: the model labels tokens of one text; drop it")
        entities = tasks.classify_tokens(model, items, aggregation=aggregation or "simple", **how)
        return [[one._asdict() for one in row] for row in entities]

    texts.run(run, items, job, work, _show)


def _show(result: list[Any]) -> str:
    """Return the best class and its probability, or the entities, parted by tabs."""
    if result and isinstance(result[0], tuple):
        return f"{result[0][0]}\t{result[0][1]:.4f}"
    return "\t".join(map(_spelled, result)) or "(none)"


def _spelled(entity: dict[str, Any]) -> str:
    text = re.sub(r"\s+", " ", entity["text"])
    return f"{text} ({entity['label']} {entity['score']:.4f})"
