"""`jaxgen augment`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import exits, inputs, outputs, paths, start
from jaxgen.cli.arguments import at_least
from jaxgen.errors import ConfigError, DataError

Kind = Literal[
    "replace", "insert", "swap", "delete", "keyboard", "ocr", "counterfactual", "masked",
    "paraphrase", "translate",
]  # fmt: skip
MODELS = {"masked": 1, "paraphrase": 1, "translate": 2}
FILED = ("replace", "insert", "counterfactual")


def augment(
    file: Annotated[str, Parameter(help="a text a line, or .jsonl with objects; - is stdin")],
    /,
    *,
    kind: Annotated[
        tuple[Kind, ...],
        Parameter(help="how; several act one after another", consume_multiple=True),
    ],
    output: Annotated[
        str | None, Parameter(help="write there, a line a text; .jsonl gives objects")
    ] = None,
    field: Annotated[str, Parameter(help="the text of an object")] = "text",
    copies: Annotated[int, at_least(1), Parameter(help="changed texts of each")] = 1,
    rate: Annotated[float, Parameter(help="part of the words or letters; at least one")] = 0.1,
    pairs: Annotated[
        str | None,
        Parameter(name="--file", help="counterfactual: two words a line; replace: word vectors"),
    ] = None,
    model: Annotated[
        tuple[str, ...],
        Parameter(help="masked, paraphrase: a run; translate: two, there and back"),
    ] = (),
    variants: Annotated[
        bool, Parameter(help="one object a text, with its variants: for data.augment")
    ] = False,
    seed: Annotated[int, at_least(0), Parameter(help="of what is drawn")] = 0,
) -> None:
    """Write changed texts, after each text as it was; objects keep their other fields.

    replace, insert, swap, delete: words; keyboard, ocr: letters; counterfactual: the
    other of each pair of words; masked: words that a masked model draws; paraphrase and
    translate: the text as runs of your own rewrite it. A label that a change would make
    wrong is yours to see to.

    For example:
        jaxgen augment reviews.jsonl --kind delete --copies 4 --output more.jsonl
        jaxgen augment reviews.jsonl --kind masked --model runs/bert --variants
        jaxgen augment en.txt --kind translate --model runs/en-de --model runs/de-en
    """
    _check(kind, model, pairs)
    if variants and not str(output or ".jsonl").endswith(".jsonl"):
        raise ConfigError(f"--variants writes objects; let --output {output} end with .jsonl")
    rows = _rows(file, field)
    target = None if output is None else outputs.target(output)
    start.prepare_jax(paths.cache())
    changed = [[row[field]] * copies for row in rows]
    for one in kind:
        changed = (
            _by_models(one, changed, model, rate, seed)
            if one in MODELS
            else _by_rule(one, changed, pairs, rate, seed)
        )
    lines = list(_lines(rows, changed, field, variants, _is_jsonl(file, target)))
    if target is None:
        outputs.put(line + "\n" for line in lines)
        return
    files.write(target, "".join(line + "\n" for line in lines))
    print(f"wrote {target}", file=sys.stderr)


def _check(kinds: Sequence[str], models: Sequence[str], pairs: str | None) -> None:
    """Raise ConfigError for kinds that lack a model or file, or have one too many."""
    named, needed = f"--kind {' '.join(kinds)}", sum(MODELS.get(one, 0) for one in kinds)
    if len(models) != needed or len([one for one in kinds if one in MODELS]) > 1:
        raise ConfigError(
            f"{named} takes {needed} --model, not {len(models)}, and one kind with a model at a "
            f"time"
        )
    if pairs is not None and not {*kinds} & {*FILED}:
        raise ConfigError(f"--file {pairs} has no effect with {named}; drop it")


def _by_rule(kind: str, texts: list[list[str]], file: str | None, rate: float, seed: int) -> Any:
    from jaxgen.data.augment.settings import AugmentSettings
    from jaxgen.data.augment.texts import change, read_tools

    given: dict[str, Any] = {} if kind == "counterfactual" else {"rate": rate}
    given |= {"file": Path(file)} if file is not None and kind in FILED else {}
    own = AugmentSettings(kind=kind, **given)  # pyright: ignore[reportArgumentType]
    tools = read_tools(own, lambda: [row[0] for row in texts])
    return [
        [
            change(text, own, tools, random.Random(f"{seed} {kind} {number} {copy}"))  # noqa: S311
            for copy, text in enumerate(row)
        ]
        for number, row in enumerate(texts)
    ]


def _by_models(
    kind: str, texts: list[list[str]], names: Sequence[str], rate: float, seed: int
) -> list[list[str]]:
    from jaxgen.run.progress import bar
    from jaxgen.text.loaded_model import open_model
    from jaxgen.text.tasks import variants

    homes = [paths.adapted(name, None, ())[0] for name in names]
    flat = [text for row in texts for text in row]
    with exits.in_folder(homes[0]), bar(f"{len(flat)} texts") as progress:
        models = [open_model(home) for home in homes]
        how: dict[str, Any] = {"copies": 1, "seed": seed, "progress": progress}
        if kind == "masked":
            rewritten = variants.masked_variants(models[0], flat, rate=rate, **how)
        else:
            rewritten = variants.rewritten_variants(models, flat, **how)
    rest = iter(rewritten)
    return [[(next(rest) or [text])[0] for text in row] for row in texts]


def _rows(file: str, field: str) -> list[dict[str, Any]]:
    if not file.endswith(".jsonl"):
        if field != "text":
            raise ConfigError(f"--field {field} has no effect: {file} is no .jsonl; drop it")
        lines = files.lines(inputs.read_text(file, f"FILE {file}", undecodable=DataError))
        rows = [{field: line} for line in lines if line.strip()]
        if not rows:
            raise DataError(f"FILE {file} has no text; write one a line")
        return rows
    records = [*inputs.objects(file, [field], "FILE", refusal=DataError)]
    for place, row in records:
        if not isinstance(row[field], str) or not row[field].strip():
            raise DataError(f"{place}: {field} is {row[field]!r:.40}, no text")
    return [row for _, row in records]


def _is_jsonl(file: str, target: Path | None) -> bool:
    return (file if target is None else target.name).endswith(".jsonl")


def _lines(rows, changed, field: str, variants: bool, objects: bool):
    """Yield what is written of each text: its variants, or itself and then each of them."""
    for row, texts in zip(rows, changed, strict=True):
        new = [text for text in dict.fromkeys(texts) if text.strip() and text != row[field]]
        if variants:
            yield json.dumps({"text": row[field], "variants": new}, ensure_ascii=False)
            continue
        for text in (row[field], *new):
            same = json.dumps({**row, field: text}, ensure_ascii=False)
            yield same if objects else text.replace("\n", "\\n")
