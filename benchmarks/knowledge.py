"""Search in documents: questions made from docstrings, and a million passages beside bm25s, faiss.

    python benchmarks/knowledge.py questions --encoder models/minilm --model runs/quickstart
    python benchmarks/knowledge.py scale --passages 1000000

Each adds its figures to benchmarks/results/knowledge.json. bm25s and faiss-cpu are measured where
they are installed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from importlib import import_module
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen.data import docstring_pairs, python_docs
from jaxgen.knowledge import answer, bm25, index, vectors

RESULTS = Path(__file__).parent / "results" / "knowledge.json"
WORDS, WIDTH, QUERIES, FIRST = 60, 384, 200, 5


def keep(name: str, figures: dict) -> None:
    """Add figures to the file of results, and print them."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**held, name: figures}, indent=1, sort_keys=True) + "\n")
    print(json.dumps(figures, indent=1))


def memory() -> float:
    """Return the most memory that this process has had so far, in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def timed(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return round(time.perf_counter() - start, 2), result


def latencies(search, queries) -> dict[str, float]:
    """Return the p50 and p95 of a search in milliseconds, the first query left out."""
    search(queries[0])
    seconds = [timed_once(search, query) for query in queries]
    return {f"p{n}_ms": round(1000 * float(np.percentile(seconds, n)), 2) for n in (50, 95)}


def timed_once(search, query) -> float:
    start = time.perf_counter()
    jax.block_until_ready(search(query))
    return time.perf_counter() - start


def write_docstrings(home: Path, count: int | None) -> list[tuple[str, str]]:
    """Write a document a module, a heading a function; return (question, summary) of each."""
    modules: dict[str, list[str]] = {}
    questions = []
    for pair in docstring_pairs():
        module = pair.module.removesuffix(".py").replace("/", ".")
        modules.setdefault(module, []).append(f"## {module}.{pair.name}\n\n{pair.summary}\n")
        questions.append((f"What does {module}.{pair.name} do?", pair.summary))
    for module, parts in modules.items():
        (home / f"{module}.md").write_text("\n".join(parts))
    random.Random(0).shuffle(questions)
    return questions[:count]


def questions(args) -> None:
    """How often the answer is in the first passages, and whether every citation stands."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "docs").mkdir()
        asked = write_docstrings(home / "docs", args.questions)
        build, done = timed(
            lambda: index.build([home / "docs"], home / "index", encoder=args.encoder)
        )
        opened = index.open_index(home / "index")
        figures: dict = {"passages": done.passages, "questions": len(asked), "build_s": build}
        for method in ("bm25", *(("dense", "hybrid") if args.encoder else ())):
            hits = [
                any(summary in hit.text for hit in opened.search(question, FIRST, method=method))
                for question, summary in asked
            ]
            figures[f"in_first_{FIRST}_{method}"] = round(float(np.mean(hits)), 4)
        if args.model:
            session, cited, wrong = jaxgen.open(args.model), 0, 0
            for question, _ in asked[: args.answers]:
                said = answer.ask(
                    session, opened, question, temperature=0.0, max_new_tokens=8, count=2
                )
                cited += len(said.citations)
                wrong += sum(not answer.is_verified(opened, one) for one in said.citations)
            figures |= {"answers": args.answers, "citations": cited, "citations_wrong": wrong}
    keep("questions", figures)


def passages_of(count: int) -> list[str]:
    """Return texts of WORDS words each, drawn of Python's documentation."""
    words = " ".join(document.text for document in python_docs()).split()
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(words) - WORDS, count)
    # A number of its own makes each text another, and the vocabulary grow as that of a crowd does.
    return [f"{' '.join(words[at : at + WORDS])} id{n % 50021}" for n, at in enumerate(starts)]


def vectors_of(texts: list[str]) -> np.ndarray:
    """Return unit vectors: sums of random vectors of words, by no encoder but as wide as one."""
    table = np.random.default_rng(1).normal(size=(1 << 15, WIDTH)).astype(np.float32)
    rows = np.empty((len(texts), WIDTH), np.float32)
    for number, text in enumerate(texts):
        rows[number] = table[[hash(word) & 0x7FFF for word in bm25.words(text)[:WORDS]]].sum(axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scale(args) -> None:
    """Build and search an index of many passages; bm25s and faiss beside it."""
    texts = passages_of(args.passages)
    rng = random.Random(2)
    queries = [" ".join(rng.sample(rng.choice(texts).split(), 6)) for _ in range(QUERIES)]
    figures: dict = {"passages": len(texts)}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with (home / "texts.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        before = memory()
        seconds, _ = timed(lambda: index.build([home / "texts.jsonl"], home / "index"))
        size = sum(path.stat().st_size for path in (home / "index").rglob("*.npy"))
        opening, opened = timed(lambda: index.open_index(home / "index", verify="off"))
        figures["words"] = {
            "build_s": seconds, "open_s": opening, "disk_GiB": round(size / 2**30, 2),
            "memory_GiB": memory(), "memory_of_texts_GiB": before,
            **latencies(lambda query: opened.search(query, 10), queries),
        }  # fmt: skip
    figures["bm25s"] = beside_bm25s(texts, queries)
    data = vectors_of(texts)
    asked = data[:: max(len(data) // QUERIES, 1)][:QUERIES] + 0.02 * np.random.default_rng(
        3
    ).normal(size=(min(QUERIES, len(data)), WIDTH)).astype(np.float32)
    codes, scales = vectors.quantize(data)
    seconds, rows = timed(lambda: vectors.arrange(codes, scales))
    rows = jax.tree.map(jax.numpy.asarray, rows)
    exact = lambda q: vectors.nearest(rows, q[None], 10, probes=None)  # noqa: E731
    lists = lambda q: vectors.nearest(rows, q[None], 10)  # noqa: E731
    shared = [
        len(set(exact(q)[1][0].tolist()) & set(lists(q)[1][0].tolist())) / 10 for q in asked[:50]
    ]
    figures["vectors"] = {
        "build_s": seconds, "lists": len(rows.centers), "memory_GiB": memory(),
        "recall_at_10": round(float(np.mean(shared)), 3),
        "exact": latencies(exact, asked), "lists_looked_into": latencies(lists, asked),
    }  # fmt: skip
    figures["faiss"] = beside_faiss(data, asked, len(rows.centers))
    keep(f"scale_{len(texts)}", figures)


def beside_bm25s(texts: list[str], queries: list[str]) -> dict | None:
    try:
        bm25s = import_module("bm25s")
    except ImportError:
        return None
    model = bm25s.BM25()

    def build():
        tokens = bm25s.tokenize(texts, stopwords=None, show_progress=False)
        model.index(tokens, show_progress=False)

    def search(query):
        tokens = bm25s.tokenize([query], stopwords=None, show_progress=False, return_ids=False)
        return model.retrieve(tokens, k=10, show_progress=False)[0]

    return {"build_s": timed(build)[0], **latencies(search, queries), "memory_GiB": memory()}


def beside_faiss(data: np.ndarray, asked: np.ndarray, lists: int) -> dict | None:
    try:
        faiss = import_module("faiss")
    except ImportError:
        return None
    lists = max(lists, 1)
    coarse = faiss.IndexFlatIP(WIDTH)
    kind = faiss.ScalarQuantizer.QT_8bit
    model = faiss.IndexIVFScalarQuantizer(coarse, WIDTH, lists, kind, faiss.METRIC_INNER_PRODUCT)

    def build():
        model.train(data[: vectors.SAMPLE * lists])
        model.add(data)

    seconds = timed(build)[0]
    model.nprobe = vectors.PROBES
    full = faiss.IndexFlatIP(WIDTH)
    full.add(data)
    shared = [
        len(set(full.search(q[None], 10)[1][0]) & set(model.search(q[None], 10)[1][0])) / 10
        for q in asked[:50]
    ]
    return {
        "build_s": seconds, "recall_at_10": round(float(np.mean(shared)), 3),
        "exact": latencies(lambda q: full.search(q[None], 10)[0], asked),
        "lists_looked_into": latencies(lambda q: model.search(q[None], 10)[0], asked),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("questions")
    one.add_argument("--questions", type=int, help="of these, at most")
    one.add_argument("--encoder", help="a model that embeds; none: words alone")
    one.add_argument("--model", help="a decoder that answers; none: search alone")
    one.add_argument("--answers", type=int, default=1000)
    one.set_defaults(work=questions)
    other = verbs.add_parser("scale")
    other.add_argument("--passages", type=int, default=1_000_000)
    other.set_defaults(work=scale)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
