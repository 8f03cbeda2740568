"""Published sets of bias as items to score: contexts, their continuations, and what each means.

Files are read as their authors publish them:

    CrowS-Pairs   .csv with sent_more, sent_less, bias_type
    StereoSet     .json with data.intrasentence and data.intersentence
    WinoBias      pro_stereotyped_*.txt, and anti_stereotyped_*.txt beside it
    BBQ           .jsonl with context, question, ans0..ans2, answer_info, label
    templates     .yaml of one's own: templates with {NAME}, and for each name its groups of words
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import files, settings_yaml
from jaxgen.errors import ConfigError, DataError, UserError

LARGEST = 1 << 28  # bytes of a file
PAIR = ("stereotype", "anti-stereotype")  # roles
UNRELATED = "unrelated"
BIASED, OTHER, UNKNOWN, UNCLEAR = "biased", "other", "unknown", "unclear"  # answers of BBQ


class Item(NamedTuple):
    """Texts to choose from.

    group: of the report. roles: what each choice is; UNCLEAR for answers of BBQ of which none, or
    both, are of the stereotyped group. answer: the right one of BBQ, and ambiguous whether its
    context leaves it open.
    """

    group: str
    context: str
    choices: tuple[str, ...]
    roles: tuple[str, ...]
    answer: int = -1
    ambiguous: bool = False


class BiasSet(NamedTuple):
    """The items of a file; kind: crows_pairs, stereoset, winobias, bbq or templates."""

    kind: str
    items: list[Item]


def read(path: str | Path) -> BiasSet:
    """Return the items of a file.

    Raises DataError, with file and place, for one that is of no set; ConfigError for one that can't
    be read.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is of no known set; give {', '.join(_READERS)}")
    text = _text(path)
    try:
        bias_set = reader(path, text)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(f"{path} is not laid as its set: {error!r}; fetch it again") from None
    if not bias_set.items:
        raise DataError(f"{path} holds no item; fetch it again")
    for number, item in enumerate(bias_set.items, 1):
        if not all(isinstance(text, str) for text in (item.group, item.context, *item.choices)):
            raise DataError(f"{path}: item {number} has no text where its set has one: {item}")
    return bias_set


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"{path} has {size} bytes, more than {LARGEST}; is it a set of bias?")
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"FILE {path}: {error.strerror}; correct the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from None


def _crows_pairs(path: Path, text: str) -> BiasSet:
    rows = csv.DictReader(io.StringIO(text))
    lacking = {"sent_more", "sent_less", "bias_type"} - {*(rows.fieldnames or ())}
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(sorted(lacking))}; a .csv is of CrowS-Pairs"
        )
    items = [Item(row["bias_type"], "", (row["sent_more"], row["sent_less"]), PAIR) for row in rows]
    return BiasSet("crows_pairs", items)


def _stereoset(path: Path, text: str) -> BiasSet:
    items = []
    data = _json(path, text)["data"]
    for kind in ("intrasentence", "intersentence"):
        for row in data.get(kind, ()):
            context = row["context"] if kind == "intersentence" else ""
            roles = tuple(one["gold_label"] for one in row["sentences"])
            if {*roles} != {*PAIR, UNRELATED} or len(roles) != 3:
                raise DataError(f"{path}: the sentences of {row['id']} are {', '.join(roles)}")
            choices = tuple(" " * bool(context) + one["sentence"] for one in row["sentences"])
            items.append(Item(f"{row['bias_type']} ({kind})", context, choices, roles))
    return BiasSet("stereoset", items)


def _winobias(path: Path, text: str) -> BiasSet:
    if "pro_stereotyped" not in path.name:
        raise DataError(f"{path} is no pro_stereotyped_*.txt of WinoBias; name that file")
    other = path.with_name(path.name.replace("pro_stereotyped", "anti_stereotyped"))
    sides = [_sentences(side) for side in (text, _text(other))]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{path} has {len(sides[0])} sentences, {other} {len(sides[1])}; fetch both"
        )
    group = match[0] if (match := re.search(r"type\d", path.name)) else "all"
    return BiasSet("winobias", [Item(group, "", pair, PAIR) for pair in zip(*sides, strict=True)])


def _sentences(text: str) -> list[str]:
    lines = (re.sub(r"^\d+\s+", "", line.strip()) for line in files.lines(text))
    return [re.sub(r"[\[\]]", "", line) for line in lines if line]


def _bbq(path: Path, text: str) -> BiasSet:
    items = []
    for number, line in enumerate(files.lines(text), 1):
        if not line.strip():
            continue
        row = _json(Path(f"{path}:{number}"), line)
        stereotyped = {name.lower() for name in row["additional_metadata"]["stereotyped_groups"]}
        tags = [{tag.lower() for tag in row["answer_info"][f"ans{place}"]} for place in range(3)]
        targets = [bool(one & stereotyped) for one in tags]
        sides = (BIASED, OTHER) if row["question_polarity"] == "neg" else (OTHER, BIASED)
        sides = sides if sum(targets) == 1 else (UNCLEAR, UNCLEAR)
        roles = [
            UNKNOWN if UNKNOWN in one else sides[not target]
            for one, target in zip(tags, targets, strict=True)
        ]
        context = f"{row['context']}\n\nQ: {row['question']}\nA:"
        choices = tuple(f" {row[f'ans{place}']}" for place in range(3))
        about = (int(row["label"]), row["context_condition"] == "ambig")
        items.append(Item(row["category"], context, choices, tuple(roles), *about))
    return BiasSet("bbq", items)


def _templates(path: Path, text: str) -> BiasSet:
    names = settings_yaml.read_yaml(path, "template file")
    templates, items, unused = _words(path, "templates", names.pop("templates")), [], {*names}
    for template in templates:
        used = set(re.findall(r"\{(\w+)\}", template))
        if lacking := used - names.keys():
            raise DataError(f"{path}: {template!r} has {', '.join(sorted(lacking))}, of which the "
                            f"file has no words")  # fmt: skip
        unused -= used
        swapped = [name for name in names if name in used and isinstance(names[name], Mapping)]
        if len(swapped) != 1:
            named = ", ".join(swapped) or "none"
            raise DataError(
                f"{path}: {template!r} must have one name with groups of words, and has {named}"
            )
        (name,) = swapped
        groups = {group: _words(path, f"{name}.{group}", w) for group, w in names[name].items()}
        if len({len(words) for words in groups.values()}) != 1 or len(groups) < 2:
            raise DataError(
                f"{path}: the groups of {name} must be two or more, with as many words each"
            )
        others = [other for other in names if other in used and other != name]
        for values in product(*(_words(path, other, names[other]) for other in others)):
            filled = template
            for other, value in zip(others, values, strict=True):
                filled = filled.replace(f"{{{other}}}", value)
            for words in zip(*groups.values(), strict=True):
                choices = tuple(filled.replace(f"{{{name}}}", word) for word in words)
                items.append(Item(name, "", choices, tuple(groups)))
    if unused:
        raise DataError(f"{path}: {', '.join(sorted(unused))} is in no template; remove it")
    return BiasSet("templates", items)


def _words(path: Path, name: str, words: Any) -> list[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{path}: {name}={words!r:.60} must be a list of texts, as in [a, 'b c']")
    return words


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}; fetch it again") from None


_READERS: dict[str, Callable[[Path, str], BiasSet]] = {
    ".csv": _crows_pairs,
    ".json": _stereoset,
    ".jsonl": _bbq,
    ".txt": _winobias,
    ".yaml": _templates,
}
