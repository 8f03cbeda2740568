"""Every measure of every generator, on the same held-out text and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.decoding.chain import chain
from jaxgen.decoding.loop import decode
from jaxgen.decoding.processors.truncation import temperature
from jaxgen.errors import DataError
from jaxgen.measure import bootstrap, diversity, energy, mauve, quality, speed, stability
from jaxgen.measure.bootstrap import NOTHING, Estimate
from jaxgen.report.generators import Generator, read_rows
from jaxgen.tokens import Tokenizer

Figures = dict[str, Estimate]
STEPS = 60  # timed steps, for percentiles
WIDE = 8  # rows of the wide batch
COMPARED = ("bleu", "chrf", "ter", "rouge_l", "meteor", "similarity", "mauve")
LOOKED = 4  # prompts decoded alone, to compare with the batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of generation; the same for all generators."""

    prompts: int = 16
    prompt_tokens: int = 16
    new_tokens: int = 48
    seeds: int = 3
    temperature: float = 0.8
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the settings of the report's JSON."""
        return asdict(self) | {"confidence": 0.95, "resamples": 1000}


@dataclass(frozen=True, eq=False)
class Text:
    """The evaluation text and the tokenizer of all generators.

    embed: texts -> vectors [N, D] of the judge model.
    """

    train: data.TokenShard
    held: data.TokenShard
    tokenizer: Tokenizer
    context: int
    embed: Callable[[Sequence[str]], np.ndarray]

    def batches(self, batch: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the held-out text, row by row."""
        return data.in_order(self.held, context=self.context, batch=batch)


def windows(text: Text, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return (prompts [N, P], true continuations [N, L]), evenly over the held-out text.

    Raises DataError if no document is long enough.
    """
    width = plan.prompt_tokens + plan.new_tokens
    tokens, offsets = text.held.all_tokens, text.held.offsets.astype(np.int64)
    begins = [
        start
        for begin, end in pairwise(offsets)
        for start in range(int(begin), int(end) - width + 1, width)
    ]
    if not begins:
        raise DataError(
            f"no held-out document has the {width} tokens of a prompt and its continuation; give "
            f"longer ones, or ask for fewer with --max-new-tokens"
        )
    chosen = np.linspace(0, len(begins) - 1, min(plan.prompts, len(begins))).astype(int)
    rows = np.stack([tokens[begins[i] : begins[i] + width] for i in chosen]).astype(np.int32)
    return rows[:, : plan.prompt_tokens], rows[:, plan.prompt_tokens :]


def likelihoods(generator: Generator, text: Text, plan: Plan) -> Figures:
    """Return bits per byte, perplexity and calibration on all of the held-out text."""
    read = jax.jit(
        lambda params, batch: read_rows(
            Generator(**{**vars(generator), "params": params}), batch, text.tokenizer.vocab_size
        )
    )
    widths, blocks, sure, hits = text.tokenizer.byte_lengths, [], [], []
    for batch in text.batches(WIDE):
        inputs = {k: batch[k] for k in ("tokens", "targets", "segments", "positions")}
        logp, best, hit = (np.asarray(x) for x in read(generator.params, inputs))
        weights = batch["weights"] != 0
        sizes = widths[batch["targets"]] * weights
        blocks.append(np.stack([(logp * weights).sum(1), weights.sum(1), sizes.sum(1)]))
        sure.append(np.exp(best[weights]))
        hits.append(hit[weights])
    logp, tokens, sizes = np.concatenate(blocks, axis=1)
    return {
        "bits_per_byte": quality.bits_per_byte(logp, sizes, seed=plan.seed),
        "perplexity": quality.perplexity(logp, tokens, seed=plan.seed),
        "calibration_error": stability.calibration_error(
            np.concatenate(sure), np.concatenate(hits), seed=plan.seed
        ),
    }


def decoder(generator: Generator, plan: Plan, vocab_size: int, length: int) -> Callable[..., Any]:
    """Return (params, prompt, keys [B]) -> new tokens [B, length], to be jitted."""

    def run(params: Any, prompt: Any, keys: Any) -> Any:
        lengths = jnp.full(prompt.shape[0], prompt.shape[1], jnp.int32)
        first, cache = generator.prefill(params, prompt, lengths, prompt.shape[1] + length)
        inner = generator.step(params)

        def step(tokens, cache):
            logits, cache = inner(tokens, cache)
            return jnp.where(jnp.arange(logits.shape[1]) < vocab_size, logits, -jnp.inf), cache

        sample = chain(temperature(plan.temperature))
        return decode(step, cache, first, keys, sample, length)[0]

    return run


def request_keys(seed: int, rows: int) -> Any:
    """Return the keys [rows] of a seed's requests."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(rows))


def generate(
    generator: Generator, text: Text, plan: Plan, prompts: np.ndarray
) -> tuple[np.ndarray, Figures]:
    """Return (continuations [seeds, N, L], the share of tokens that depends on the batch)."""
    run = jax.jit(decoder(generator, plan, text.tokenizer.vocab_size, plan.new_tokens))
    seeds = [
        np.asarray(run(generator.params, prompts, request_keys(plan.seed + s, len(prompts))))
        for s in range(plan.seeds)
    ]
    keys = request_keys(plan.seed, len(prompts))
    alone = [
        np.asarray(run(generator.params, prompts[i : i + 1], keys[i : i + 1]))[0]
        for i in range(min(LOOKED, len(prompts)))
    ]
    change = [stability.changed_share(a, b) for a, b in zip(alone, seeds[0], strict=False)]
    return np.stack(seeds), {"batch_change": bootstrap.mean(change, seed=plan.seed)}


def measure_texts(
    ids: np.ndarray, true: np.ndarray, text: Text, plan: Plan, *, reference: bool
) -> Figures:
    """Return the measures of ids [seeds, N, L]; reference: they are the true continuations."""
    seed, flat = plan.seed, ids.reshape(-1, ids.shape[-1]).tolist()
    words = [text.tokenizer.decode(row) for row in flat]
    figures = {
        "distinct_2": diversity.distinct(flat, 2, seed=seed),
        "entropy_2": diversity.entropy(flat[: len(true)], 2, seed=seed),
        "zipf": diversity.zipf(flat[: len(true)], seed=seed),
        "coverage": diversity.coverage(
            flat[: len(true)], set(true.reshape(-1).tolist()), seed=seed
        ),
        "copied_8": diversity.copied_share(flat, text.train.all_tokens, 8, seed=seed),
        "rep_16": stability.rep(flat, 16, seed=seed),
        "seq_rep_4": stability.seq_rep(flat, 4, seed=seed),
        "loops": stability.loops(flat, seed=seed),
    }
    figures |= quality.compute_installed(
        {"self_bleu": lambda: diversity.self_bleu(words[: len(true)], seed=seed)}
    )
    if reference:
        return figures
    pairs = [diversity.distinct_counts(rows.tolist(), 2) for rows in ids]
    above, below = (np.stack(side) for side in zip(*pairs, strict=True))
    figures["seed_spread"] = stability.spread(above, below, seed=seed)
    references = [text.tokenizer.decode(row) for row in true.tolist()]
    return figures | compare(words, references, text, plan)


def compare(words: list[str], references: list[str], text: Text, plan: Plan) -> Figures:
    """Return the similarity of texts [seeds * N] to the true continuations [N] of their prompts."""
    seed = plan.seed
    every = references * (len(words) // len(references))
    rows = [i for i, reference in enumerate(every) if reference.strip()]
    ours, theirs = [words[i] for i in rows], [every[i] for i in rows]
    if not rows:
        return dict.fromkeys(COMPARED, NOTHING)
    figures = quality.compute_installed(
        {
            "bleu": lambda: quality.overlap("bleu", ours, theirs, seed=seed)[0],
            "chrf": lambda: quality.overlap("chrf", ours, theirs, seed=seed)[0],
            "ter": lambda: quality.overlap("ter", ours, theirs, seed=seed)[0],
            "rouge_l": lambda: quality.rouge("rougeL", ours, theirs, seed=seed),
            "meteor": lambda: quality.meteor(ours, theirs, seed=seed),
        }
    )
    nonempty = [i for i, words in enumerate(ours) if words]  # an empty text has no vector
    pairs = [ours[i] for i in nonempty], [theirs[i] for i in nonempty]
    true = [reference for reference in references if reference.strip()]
    figures |= {"similarity": NOTHING, "mauve": NOTHING}
    if nonempty:
        figures["similarity"] = quality.similarity(text.embed, *pairs, seed=seed)
    if min(len(nonempty), len(true)) > 1:
        figures["mauve"] = mauve.mauve(text.embed(pairs[0]), text.embed(true), seed=seed)
    return figures


def sensitivity(generator: Generator, text: Text, plan: Plan, prompts: np.ndarray) -> Figures:
    """Return the change of the next token with a shorter prompt, and with params in bfloat16."""
    vocab_size = text.tokenizer.vocab_size

    def following(params: Any, prompt: Any) -> Any:
        lengths = jnp.full(prompt.shape[0], prompt.shape[1], jnp.int32)
        first, cache = generator.prefill(params, prompt, lengths, prompt.shape[1] + 1)
        return jax.nn.softmax(generator.step(params)(first, cache)[0][:, :vocab_size])

    def rounded(leaf: Any) -> Any:
        return leaf.astype(jnp.bfloat16).astype(leaf.dtype) if leaf.dtype == jnp.float32 else leaf

    run = jax.jit(following)
    full = np.asarray(run(generator.params, prompts))
    shorter = np.asarray(run(generator.params, prompts[:, 1:]))
    coarse = np.asarray(run(jax.tree.map(rounded, generator.params), prompts))
    return {
        "prompt_change": stability.variation(full, shorter, seed=plan.seed),
        "precision_change": stability.variation(full, coarse, seed=plan.seed),
    }


def timing(generator: Generator, text: Text, plan: Plan, prompts: np.ndarray) -> Figures:
    """Return latencies, throughput, compile time and memory."""
    vocab_size, figures = text.tokenizer.vocab_size, {}
    for rows in (1, WIDE):
        prompt = jnp.asarray(np.resize(prompts, (rows, prompts.shape[1])))
        inputs = (generator.params, prompt, request_keys(plan.seed, rows))
        decode_all = decoder(generator, plan, vocab_size, plan.new_tokens)
        program, compiling, held = speed.compile_timed(decode_all, *inputs)
        durations = speed.seconds(partial(program, *inputs), 5)
        rate = rows * plan.new_tokens / durations
        figures[f"tokens_per_second_{rows}"] = bootstrap.mean(rate, seed=plan.seed)
        if rows == 1:
            figures["compile_seconds"] = Estimate(compiling, None, None)
            short, _, _ = speed.compile_timed(decoder(generator, plan, vocab_size, 1), *inputs)
            first = 1000 * speed.seconds(partial(short, *inputs), STEPS)
            figures["first_token_ms"] = bootstrap.mean(first, seed=plan.seed)
            figures |= _steps(generator, prompt, plan)
            continue
        if held is not None:
            figures["memory_mib"] = Estimate(held / 2**20, None, None)
        figures["token_joules"] = _joules(partial(program, *inputs), rows * plan.new_tokens, plan)
    return figures


def _joules(run: Callable[[], Any], tokens: int, plan: Plan) -> Estimate:
    """Return joules per token; NOTHING where the platform does not report energy."""
    samples = [energy.joules(lambda: jax.block_until_ready(run())) for _ in range(5)]
    each = [joules / tokens for joules in samples if joules is not None]
    return bootstrap.mean(each, seed=plan.seed)


def _steps(generator: Generator, prompt: Any, plan: Plan) -> Figures:
    """Return percentiles of one step, called from the host as a streaming server calls it."""
    lengths = jnp.full(1, prompt.shape[1], jnp.int32)
    capacity = prompt.shape[1] + plan.new_tokens
    reading = jax.jit(generator.prefill, static_argnums=3)
    first, cache = reading(generator.params, prompt, lengths, capacity)
    stepping = jax.jit(lambda params, token, cache: generator.step(params)(token, cache))
    run = partial(stepping, generator.params, first, cache)
    durations = 1000 * speed.seconds(run, STEPS)
    return {
        f"token_ms_p{q}": bootstrap.interval(
            lambda x, q=q: np.percentile(x, q, axis=-1), durations, seed=plan.seed
        )
        for q in (50, 95, 99)
    }


def measure(
    generator: Generator, text: Text, plan: Plan, prompts: np.ndarray, true: np.ndarray
) -> tuple[Figures, np.ndarray]:
    """Return (every figure of one generator, its continuations of the first seed)."""
    continuations, figures = generate(generator, text, plan, prompts)
    figures |= likelihoods(generator, text, plan)
    figures |= measure_texts(continuations, true, text, plan, reference=False)
    figures |= sensitivity(generator, text, plan, prompts)
    figures |= timing(generator, text, plan, prompts)
    took = generator.train_seconds
    figures["train_seconds"] = NOTHING if took is None else Estimate(took, None, None)
    return figures, continuations[0]
