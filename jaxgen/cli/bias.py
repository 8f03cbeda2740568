"""`jaxgen bias`."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from jaxgen import files, terminal
from jaxgen.cli import exits, outputs, paths, start, texts
from jaxgen.cli.arguments import Adapters, Step, at_least


def bias(
    model: texts.Folder,
    file: Annotated[str, Parameter(help="a set as it is published, or templates of one's own")],
    /,
    *,
    output: Annotated[str | None, Parameter(help="a .jsonl file with the scores of each")] = None,
    batch: Annotated[int, at_least(1), Parameter(help="texts at once")] = 16,
    step: Step = None,
    adapter: Adapters = (),
) -> None:
    """Measure what stereotypes a decoder prefers, by group, with 95 % intervals.

    CrowS-Pairs is a .csv, StereoSet a .json, BBQ a .jsonl; of WinoBias name
    pro_stereotyped_*.txt, whose anti_stereotyped_* lies beside it. A .yaml holds
    templates of one's own, whose words are swapped: templates: a list of texts with
    {NAME}, and NAME: {GROUP: [words], GROUP: [words]}, the nth word of each group in
    the place of the others'. Scores are those of lm-evaluation-harness. What each
    figure means (stereotype preferred, difference, gap, ...) is printed above them.

    For example:
        jaxgen bias smollm2 crows_pairs_anonymized.csv
        jaxgen bias runs/my BBQ/data/Age.jsonl --output scores.jsonl
        jaxgen bias runs/my professions.yaml
    """
    from jaxgen.safety import bias as measures
    from jaxgen.safety import bias_items

    bias_set = bias_items.read(file)
    target = None if output is None else outputs.target(output)
    home, which, adapters = paths.adapted(model, step, adapter)
    start.prepare_jax(paths.cache())
    from jaxgen.report.table import cell
    from jaxgen.run.progress import bar
    from jaxgen.text.loaded_model import open_model
    from jaxgen.text.tasks import scoring

    pairs = [(item.context, choice) for item in bias_set.items for choice in item.choices]
    with exits.in_folder(home):
        opened = open_model(home, step=which, adapter=adapters)
        with bar(f"{len(bias_set.items)} items") as progress:
            flat = iter(scoring.score_pairs(opened, pairs, batch=batch, progress=progress))
    scores = [[next(flat) for _ in item.choices] for item in bias_set.items]
    unclear = sum(bias_items.UNCLEAR in item.roles for item in bias_set.items)
    print(f"{bias_set.kind}: {len(bias_set.items)} items")
    print(measures.MEANINGS[bias_set.kind])
    if unclear:
        print(f"{unclear} items count for accuracy alone: their stereotyped group is of no answer, "
              f"or of both")  # fmt: skip
    terminal.print_rows([
        (f"{row.group}, {row.name}", f"{cell(row.estimate._asdict())} of {row.items}")
        for row in measures.figures(bias_set, scores)
    ])  # fmt: skip
    if target is not None:
        lines = [
            json.dumps({**item._asdict(), "logprobs": [logp for logp, _ in row],
                        "tokens": [count for _, count in row]}, ensure_ascii=False)
            for item, row in zip(bias_set.items, scores, strict=True)
        ]  # fmt: skip
        files.write(target, "".join(line + "\n" for line in lines))
