"""The metrics of a report: their titles, and the schema of its JSON."""

from __future__ import annotations

from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A figure of the report: its key in the JSON, title and description."""

    axis: str
    key: str
    title: str
    better: str  # "less", "more", "reference" (near the held-out text's own) or ""
    about: str
    extra: str = ""  # of jaxgen, with the package it needs


def left_out(report: dict[str, Any]) -> str:
    """Return which metrics a report lacks, and which extra adds them; "" if it lacks none."""
    lacking: dict[str, list[str]] = {}
    for metric in METRICS:
        if metric.extra and not any(
            metric.key in one["metrics"] for one in report["generators"].values()
        ):
            lacking.setdefault(metric.extra, []).append(metric.title)
    return "; ".join(
        f'{", ".join(titles)} (pip install "jaxgen[{extra}]" adds them)'
        for extra, titles in lacking.items()
    )


METRICS = (
    Metric("quality", "bits_per_byte", "bits per byte", "less",
           "of held-out text; compares models with different tokenizers"),
    Metric("quality", "perplexity", "perplexity", "less", "per token of held-out text"),
    Metric("quality", "bleu", "BLEU", "more", "of continuations with the true ones (sacrebleu)",
           "eval"),
    Metric("quality", "chrf", "chrF", "more", "the same, by characters (sacrebleu)", "eval"),
    Metric("quality", "ter", "TER", "less", "edits to turn one into the other (sacrebleu)", "eval"),
    Metric("quality", "rouge_l", "ROUGE-L", "more", "longest common subsequence (rouge-score)",
           "eval"),
    Metric("quality", "meteor", "METEOR", "more",
           "words shared by form or stem, in order (as nltk, without synonyms)", "eval"),
    Metric("quality", "similarity", "similarity", "more",
           "cosine of a continuation and the true one, in the vectors of the judge"),
    Metric("quality", "mauve", "MAUVE", "more",
           "overlap of all continuations with the true ones, in the vectors of the judge"),
    Metric("diversity", "distinct_2", "distinct-2", "reference",
           "different pairs of tokens, by all pairs"),
    Metric("diversity", "self_bleu", "self-BLEU", "reference",
           "how much the continuations resemble each other", "eval"),
    Metric("diversity", "entropy_2", "entropy of pairs", "reference", "bits"),
    Metric("diversity", "zipf", "Zipf coefficient", "reference",
           "slope of frequency on rank, in logarithms"),
    Metric("diversity", "coverage", "vocabulary used", "reference",
           "part of the ids of the held-out continuations that occur"),
    Metric("diversity", "copied_8", "copied", "reference",
           "part of all 8-token phrases that stand verbatim in the training text"),
    Metric("stability", "rep_16", "rep-16", "reference",
           "tokens that occur among the 16 before"),
    Metric("stability", "seq_rep_4", "seq-rep-4", "reference",
           "part of a text's 4-token phrases that repeat"),
    Metric("stability", "loops", "loops", "less", "part of texts that end in a loop"),
    Metric("stability", "calibration_error", "calibration error", "less",
           "gap between confidence and hits of the likeliest token, 10 bins"),
    Metric("stability", "seed_spread", "spread over seeds", "less",
           "standard deviation of distinct-2 over the seeds"),
    Metric("stability", "prompt_change", "change by prompt", "less",
           "total variation of the next token when the prompt loses its first one"),
    Metric("stability", "batch_change", "change by batch", "less",
           "tokens that differ when a prompt is alone in its batch"),
    Metric("stability", "precision_change", "change by precision", "less",
           "total variation of the next token with bfloat16 params"),
    Metric("speed", "first_token_ms", "first token, ms", "less", "prefill and one step, batch 1"),
    Metric("speed", "token_ms_p50", "token, ms (p50)", "less", "one step, batch 1"),
    Metric("speed", "token_ms_p95", "token, ms (p95)", "less", "one step, batch 1"),
    Metric("speed", "token_ms_p99", "token, ms (p99)", "less", "one step, batch 1"),
    Metric("speed", "tokens_per_second_1", "tokens/s, batch 1", "more", "compiled loop"),
    Metric("speed", "tokens_per_second_8", "tokens/s, batch 8", "more", "compiled loop"),
    Metric("speed", "compile_seconds", "compiling, s", "less", "prefill and loop, batch 1"),
    Metric("speed", "memory_mib", "memory, MiB", "less",
           "arguments, results and temporaries of the loop, batch 8, as XLA plans them"),
    Metric("speed", "token_joules", "energy, J per token", "less",
           "of processor and GPU, batch 8, where the platform tells"),
    Metric("speed", "train_seconds", "training, s", "less", "baselines only"),
)  # fmt: skip

SCHEMA = {
    "format": "1; a reader refuses a larger one",
    "settings": "how texts were made: prompts, tokens of a prompt and of a continuation, seeds, "
    "temperature, confidence level of the intervals; judge: the model whose vectors similarity and "
    "MAUVE compare",
    "text": "the corpus: digest, split, tokens, bytes, documents",
    "generators": "name -> {about, parameters, metrics}; metrics: key -> {value, low, high}, null "
    "where undefined or not measured, absent where the extra is not installed; 'held-out text' is "
    "the true continuations themselves",
    "metrics": "key -> {axis, title, better, about, extra: what has to be installed for it}",
    "samples": "list of {prompt, texts: name -> continuation}",
    "audits": "what `jaxgen audit` has written of each run; one that was not audited has none",
    "environment": "versions, devices, cores",
}
