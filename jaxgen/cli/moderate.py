"""`jaxgen moderate`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxgen import files
from jaxgen.cli import inputs, outputs, paths, start
from jaxgen.cli.texts import one_each
from jaxgen.errors import ConfigError, DataError

Source = Annotated[
    str | None,
    Parameter(help='a text a line, or .jsonl with objects that have a "text"; - is standard input'),
]


def moderate(
    file: Source = None,
    /,
    *,
    policy: Annotated[str | None, Parameter(help="a YAML file of what texts may not hold")] = None,
    output: Annotated[
        str | None, Parameter(help="write there, a line a text; .jsonl gives objects")
    ] = None,
    verify_log: Annotated[str | None, Parameter(help="check an audit log instead")] = None,
) -> None:
    """Show texts as a policy lets them be: masked, cut, or left out.

    What a rule masks or forbids is shown as ***; a text that a rule stops ends before
    it, and one that a classifier refuses is empty. A .jsonl output has the names of
    the rules. How many texts each has changed is said on standard error.

    A policy has rules, each with words, words_file, regex or personal (card, iban,
    email, phone, key), and an action: forbid (never drawn), mask (***), stop (the
    text ends before); classifiers (model, label, threshold, when: before, during,
    after), each of which reads all of a text here, whatever its when; audit, a log of
    prompts refused and texts changed (what is never drawn leaves no line in it). Case,
    accents, look-alikes and digits for letters count as the word, unless fold says
    otherwise; letters with blanks or dots between them (d a m n) are other words:
        rules:
          - {name: rude, words: [damn, heck], action: forbid}
          - {name: codes, regex: ['PRJ-[0-9]{4}'], action: stop, where: [prompt, text]}
          - {name: private, personal: [card, email], action: mask}
        audit: audit.jsonl

    For example:
        jaxgen moderate comments.txt --policy policy.yaml
        jaxgen moderate comments.jsonl --policy policy.yaml --output shown.jsonl
        jaxgen moderate --verify-log audit.jsonl
    """
    if verify_log is not None:
        if (file, policy, output) != (None, None, None):
            raise ConfigError(f"--verify-log {verify_log} stands alone; drop the others")
        from jaxgen.safety import audit

        print(f"{verify_log}: {audit.verify(verify_log)} lines, as they were written")
        return
    if policy is None:
        raise ConfigError("moderate needs --policy POLICY.yaml: what texts may not hold")
    texts = _read_texts(file or "-")
    target = None if output is None else outputs.target(output)
    start.prepare_jax(paths.cache())
    from jaxgen.safety.policy import read_policy
    from jaxgen.text import moderation

    results = moderation.moderate(read_policy(policy), texts)
    _show(results, target)
    acted = Counter(name for _, rules in results for name in rules)
    changed = sum(bool(rules) for _, rules in results)
    by_rule = "".join(f"; {name}: {count}" for name, count in acted.most_common())
    print(f"{changed} of {len(results)} texts changed{by_rule}", file=sys.stderr)


def _show(results: Sequence[tuple[str, Sequence[str]]], target: Path | None) -> None:
    """Write (text, names of rules) to a file, or the texts to standard output."""
    if target is not None and target.suffix == ".jsonl":
        lines = [
            json.dumps({"text": text, "rules": list(rules)}, ensure_ascii=False)
            for text, rules in results
        ]
    else:
        lines = one_each((text for text, _ in results), "escape")
    if target is None:
        outputs.put(line + "\n" for line in lines)
    else:
        files.write(target, "".join(line + "\n" for line in lines))


def _read_texts(source: str) -> list[str]:
    if Path(source).suffix != ".jsonl":
        lines = files.lines(inputs.read_text(source, f"FILE {source}", undecodable=DataError))
        if not lines:
            raise DataError(f"FILE {source} has no line; write one text a line")
        return lines
    rows = [*inputs.objects(source, ["text"], "FILE", refusal=DataError)]
    for place, row in rows:
        if not isinstance(row["text"], str):
            raise DataError(f"{place}: text is {row['text']!r:.40}, no text; quote it")
    return [row["text"] for _, row in rows]
