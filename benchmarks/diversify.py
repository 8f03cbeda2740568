"""More pairs for a translation run, made from its training split alone by an earlier run.

    python benchmarks/diversify.py runs/en_de multi30k made/forward
    python benchmarks/diversify.py runs/de_en multi30k made/backward
    jaxgen train translate_diverse

The run translates each source of `train` with beam 5, and of the five texts the one nearest to the
true translation (sentence BLEU) stands beside that source: data diversification (Nguyen et al.
2020) with the interpolation of Kim and Rush 2016, section 3.3. A run of the other direction makes
sources for true targets. Writes OUT.SIDE.gz for both sides.
"""

import argparse
import gzip
import sys
import time
from pathlib import Path

import sacrebleu
from multi30k import are_small, averaged, lines

from jaxgen import settings_yaml
from jaxgen.text import tasks
from jaxgen.text.request import Generation


def nearest(texts, truth, lowercase):
    """The text with the highest sentence BLEU to the truth; the likelier of equals."""
    metric = sacrebleu.BLEU(lowercase=lowercase, effective_order=True)
    return max(texts, key=lambda text: metric.sentence_score(text, [truth]).score)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--average", type=int, default=5)
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    config = settings_yaml.read_yaml(asked.run / "config.yaml")
    sides = source, target = config["data"]["sides"]
    texts, truths = (lines(asked.data, "train", side)[: asked.limit] for side in sides)
    _, model = averaged(asked.run, asked.average)
    begin = time.perf_counter()

    def progress(done, of):
        took = time.perf_counter() - begin
        print(f"\r{done}/{of} texts, {done / took:.1f} texts/s", end="", file=sys.stderr)

    search = Generation(beams=5, n_best=5)
    rows = tasks.rewrites(model, texts, search, batch=128, progress=progress)
    found = [[one.text for one in row] for row in rows]
    small = are_small(ways[0] for ways in found)
    made = [nearest(ways, truth, small) for ways, truth in zip(found, truths, strict=True)]
    print(file=sys.stderr)
    for name, made_ in (("likeliest", [ways[0] for ways in found]), ("nearest", made)):
        print(f"{name}: {sacrebleu.BLEU(lowercase=small).corpus_score(made_, [truths])}")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for side, rows in ((source, texts), (target, made)):
        with gzip.open(f"{asked.out}.{side}.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in rows)


if __name__ == "__main__":
    main()
