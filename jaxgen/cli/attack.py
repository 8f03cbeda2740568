"""`jaxgen attack`."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from jaxgen import terminal
from jaxgen.cli import exits, inputs, outputs, paths, start, texts
from jaxgen.cli.arguments import Step, at_least
from jaxgen.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from jaxgen.text.tasks.attack import AttackResult

NARROW = 60  # columns below which texts stand above one another
KEPT = 50  # frequent words that stay, where no file says which


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far an attack may go."""

    method: Annotated[
        Literal["greedy", "beam", "hotflip"], Parameter(help="how words are chosen")
    ] = "greedy"
    beam: Annotated[int | None, at_least(2), Parameter(help="beam: texts kept, or 4")] = None
    candidates: Annotated[int, at_least(1), Parameter(help="words tried in the place of one")] = 20
    similarity: Annotated[
        float, Parameter(help="least cosine of the vectors of a word and what replaces it")
    ] = 0.3
    edits: Annotated[float, Parameter(help="largest share of a text's words replaced")] = 0.3
    keep: Annotated[
        str | None,
        Parameter(
            help=f"a file of words that stay; absent: the {KEPT} most frequent, a tenth of all"
        ),
    ] = None
    vectors: Annotated[
        str | None,
        Parameter(help="word vectors as of word2vec or GloVe; absent: made of the texts' words"),
    ] = None
    batch: Annotated[int, at_least(1), Parameter(help="texts at once")] = 128


SEARCH = Search()


def attack(
    run: texts.Folder,
    /,
    *,
    data: Annotated[
        str, Parameter(help='.jsonl, an object a line: {"text": ..., "label": ...}; - is stdin')
    ],
    fields: Annotated[str, Parameter(help="what the two are called there")] = "text,label",
    limit: Annotated[int | None, at_least(1), Parameter(help="texts at most")] = None,
    search: Annotated[Search, Parameter(name="*")] = SEARCH,
    examples: Annotated[int, at_least(0), Parameter(help="successes to show")] = 3,
    as_json: Annotated[bool, Parameter(name="--json", help="print an object instead")] = False,
    step: Step = None,
) -> None:
    """Attack a classifier: exchange words of texts for near ones until it is wrong.

    greedy and beam try words from the most important one on, hotflip those that the
    gradient names. Shows the accuracy before and after, the share of texts told right
    before whose class changed (success), queries a text, and examples side by side.

    For example:
        jaxgen attack runs/classify --data test.jsonl
        jaxgen attack runs/classify --data test.jsonl --method beam --edits 0.2
        jaxgen attack runs/classify --data test.jsonl --vectors glove.txt --json
    """
    if search.beam is not None and search.method != "beam":
        raise ConfigError(f"--beam {search.beam} has no effect with --method {search.method}")
    rows = _rows(data, fields)[:limit]
    home, which, _ = paths.adapted(run, step, ())
    start.prepare_jax(paths.cache())
    from jaxgen.run.progress import bar
    from jaxgen.text.loaded_model import open_model
    from jaxgen.text.tasks import attack as attacks

    plain = [text for _, text, _ in rows]
    settings, near = _settings(search, plain), _near(search.vectors, plain)
    with exits.in_folder(home):
        model = open_model(home, step=which)
        labels = [_label(model.labels, place, label) for place, _, label in rows]
        begun = time.perf_counter()
        with bar(f"{len(rows)} texts") as progress:
            results = attacks.attack(model, plain, labels, near, settings, progress)
    figures = attacks.summary(results, time.perf_counter() - begun)
    won = [one for one in results if one.success]
    if as_json:
        outputs.put(
            [json.dumps(_as_json(figures, results, model.labels), ensure_ascii=False) + "\n"]
        )
        return
    _show(figures)
    for one in won[:examples]:
        shown = side_by_side(one, model.labels, terminal.width() or 80)
        outputs.put(line + "\n" for line in ("", *shown))
    if not won:
        more = "allow more with --edits, --similarity or --candidates"
        print(f"no text's class changed; {more}", file=sys.stderr)


def _settings(search: Search, plain: Sequence[str]) -> Any:
    from jaxgen.data.augment import words
    from jaxgen.text.tasks.attack import AttackSettings

    vocabulary = {word for text in plain for word in words.words_of(text.lower())}
    keep = words.frequent(plain, min(KEPT, len(vocabulary) // 10))
    if search.keep is not None:
        keep = tuple(inputs.read_text(search.keep, f"--keep {search.keep}").lower().split())
    return AttackSettings(
        method=search.method,
        beam=search.beam or 4,
        candidates=search.candidates,
        similarity=search.similarity,
        edits=search.edits,
        keep=frozenset(keep),
        batch=search.batch,
    )


def _near(vectors: str | None, plain: Sequence[str]) -> Any:
    from jaxgen.data.augment import words

    return words.neighbours_of(plain) if vectors is None else words.read_neighbours(vectors)


def _rows(data: str, fields: str) -> list[tuple[str, str, str]]:
    """Return (place, text, label) of each record."""
    names = fields.split(",")
    if len(names) != 2 or not all(names):
        raise ConfigError(f"--fields {fields} must be two names, such as text,label")
    rows = []
    for place, row in inputs.objects(data, names, "--data", refusal=DataError):
        text, label = row[names[0]], row[names[1]]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}: {names[0]} is {text!r:.40}, no text")
        rows.append((place, text, str(label)))
    return rows


def _label(labels: Sequence[str], place: str, label: str) -> int:
    if label not in labels:
        raise DataError(
            f"{place}: the model has no class {label!r}{nearest(label, labels)}; it has "
            f"{', '.join(labels[:8])}"
        )
    return list(labels).index(label)


def _show(figures: dict[str, float]) -> None:
    shares = ("accuracy", "accuracy_attacked", "success_rate", "edits")
    named = {"accuracy_attacked": "accuracy under attack", "success_rate": "success of the attack"}
    named |= {"edits": "words exchanged in those", "queries": "queries a text"}
    named |= {"queries_per_second": "queries a second"}
    terminal.print_rows(
        [
            (named.get(name, name), f"{value:.1%}" if name in shares else f"{value:,.0f}")
            for name, value in figures.items()
        ]
    )


def _as_json(
    figures: dict[str, float], results: Sequence[AttackResult], labels: Sequence[str]
) -> Any:
    rows = [
        {
            "text": one.text,
            "label": labels[one.label],
            "predicted": labels[one.before],
            "success": one.success,
            "attacked": one.other,
            "predicted_attacked": labels[one.after],
            "probability": one.chance,
            "swaps": [{"word": n, "old": old, "new": new} for n, old, new in one.swaps],
            "queries": one.queries,
        }
        for one in results
    ]
    return figures | {"texts": len(results), "results": rows}


def side_by_side(one: AttackResult, labels: Sequence[str], columns: int) -> list[str]:
    """Return lines that show a text and what the attack made of it, exchanged words in *.

    columns: of the terminal; below NARROW of them the texts stand above one another.
    """
    from jaxgen.data.augment.words import split

    def marked(text: str, words: set[int]) -> str:
        pieces = split(text)
        for number in words:
            pieces[2 * number + 1] = f"*{pieces[2 * number + 1]}*"
        return " ".join("".join(pieces).split())

    exchanged = {number for number, _, _ in one.swaps}
    sides = [
        (f"[{labels[one.before]}]", marked(one.text, exchanged)),
        (f"[{labels[one.after]}]", marked(one.other, exchanged)),
    ]
    if columns < NARROW:
        return [line for head, text in sides for line in (head, *textwrap.wrap(text, columns))]
    room = (columns - 3) // 2
    left, right = ([head[:room], *textwrap.wrap(text, room)] for head, text in sides)
    return [f"{a:<{room}} | {b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]
