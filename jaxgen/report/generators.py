"""One interface for all generators: prefill, step and logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen import data, tree
from jaxgen.config import ModelConfig
from jaxgen.config_parts import Embed
from jaxgen.errors import ConfigError, nearest
from jaxgen.models import api
from jaxgen.models.classic import hmm, maxent, mixture, ngram, template, vae
from jaxgen.models.classic.maxent import Fit, MaxEnt
from jaxgen.models.classic.template import Template
from jaxgen.models.classic.vae import VAE
from jaxgen.ops import keys
from jaxgen.text.generate import prefill
from jaxgen.text.model_steps import model_step
from jaxgen.tokens import Tokenizer

ORDER = 5  # of the n-gram
STATES = 64
ROUNDS = 15
PRIOR = 0.01
FIXED, SUPPORT, LONGEST = 300, 3, 24  # ids of frames, sentences of a frame, its parts
WORDS, SUFFIXES = 1000, 100  # features of maxent
ROUNDS_OF_MAXENT, L2, RATE = 2, 1e-6, 0.1
AUTOENCODER: dict[str, Any] = {"layers": 2, "d_model": 128, "heads": 4, "d_ff": 512}
LATENT, SLOTS, DRAWS = 32, 4, 8
FIT_OF_VAE = vae.Fit(steps=400, batch=32, rate=2e-3, cycle=200, cycles=1, free=0.1, hide=0.2)
WIDTH = 128  # of the rows that such a batch holds; longer rows are fewer


@dataclass(frozen=True)
class Lesson:
    """Training data of a baseline: a shard, and the context of its rows."""

    shard: data.TokenShard
    tokenizer: Tokenizer
    context: int
    seed: int


@dataclass(frozen=True)
class Generator:
    """A trained generator as pure functions of its params.

    prefill: (params, prompt [B, T], lengths [B], capacity) -> (first [B], cache). step: params ->
    decoding step. logits: (params, batch) -> [B, T, V] of a batch of `data.in_order`.
    """

    name: str
    about: str
    params: Any
    prefill: Callable[..., Any]
    step: Callable[..., Any]
    logits: Callable[..., Any]
    context: int | None  # tokens that prompt and continuation may have together; None: any
    train_seconds: float | None = None

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return tree.count(self.params)


def transformer(name: str, config: ModelConfig, params: Any) -> Generator:
    """Return a decoder of ours as a generator."""

    def logits(params: Any, batch: dict[str, Any]) -> Any:
        options = {name: batch[name] for name in ("segments", "positions")}
        return api.apply(params, config, batch["tokens"], **options).logits

    return Generator(
        name=name,
        about=f"Transformer, {config.layers} layers of {config.d_model}",
        params=params,
        prefill=lambda params, *rest: prefill(params, config, *rest),
        step=lambda params: model_step(params, config),
        logits=logits,
        context=config.context,
    )


def baseline(kind: str, lesson: Lesson) -> Generator:
    """Train a generator of BASELINES."""
    begin = time.perf_counter()
    generator = BASELINES[kind](lesson)
    took = time.perf_counter() - begin
    return Generator(**{**vars(generator), "train_seconds": took})


def _ngram(lesson: Lesson) -> Generator:
    shard, config = lesson.shard, ngram_config(lesson.tokenizer)
    params = ngram.on_device(ngram.train(config, shard.all_tokens, shard.offsets))

    def start(batch: int) -> Any:
        # A row of held-out text begins in mid-document, for every generator.
        return jnp.full((batch, config.order - 1), -1, jnp.int32)

    return Generator(
        name="ngram",
        about=f"{config.order}-gram, modified Kneser-Ney",
        params=params,
        prefill=lambda params, prompt, lengths, _: ngram.prefill(params, config, prompt, lengths),
        step=lambda params: ngram.step(params, config),
        logits=partial(_logits_of_steps, lambda params: ngram.step(params, config), start),
        context=None,
    )


def ngram_config(tokenizer: Tokenizer) -> ngram.NGram:
    """Return the sizes of the n-gram baseline for a tokenizer."""
    size, begin = tokenizer.vocab_size, tokenizer.special.bos
    return ngram.NGram(vocab_size=size, order=ORDER, begin=begin)


def _hmm(lesson: Lesson) -> Generator:
    width, shard = 128, lesson.shard
    rows = -(-len(shard.tokens) // width)
    tokens = np.zeros((rows, width), np.int32)
    tokens.reshape(-1)[: len(shard.tokens)] = shard.tokens
    lengths = np.full(rows, width)
    lengths[-1] = len(shard.tokens) - (rows - 1) * width
    params = hmm.init(STATES, lesson.tokenizer.vocab_size, keys.from_seed(lesson.seed))
    params, _ = hmm.train(
        params, jnp.asarray(tokens), jnp.asarray(lengths), rounds=ROUNDS, prior=PRIOR, batch=1024
    )

    return Generator(
        name="hmm",
        about=f"hidden Markov model of {STATES} states",
        params=params,
        prefill=lambda params, prompt, lengths, _: hmm.prefill(params, prompt, lengths),
        step=hmm.step,
        logits=partial(_logits_of_steps, hmm.step, partial(hmm.start, params)),
        context=None,
    )


def _template(lesson: Lesson) -> Generator:
    shard, tokenizer = lesson.shard, lesson.tokenizer
    size = tokenizer.vocab_size
    config = Template(
        vocab_size=size,
        fixed=min(FIXED, max(size // 2, 1)),
        support=SUPPORT,
        longest=LONGEST,
        order=2,
        begin=tokenizer.special.bos,
    )
    trained = template.train(config, shard.all_tokens, shard.offsets, sentence_ends(tokenizer))
    # A row of held-out text begins in mid-document, so outside the tree.
    begin = template.Cache(jnp.full(1, -1, jnp.int32), jnp.full((1, 1), -1, jnp.int32))

    def start(batch: int) -> Any:
        return jax.tree.map(lambda x: jnp.repeat(x, batch, axis=0), begin)

    return Generator(
        name="template",
        about=f"sentence frames with slots over a {config.order}-gram",
        params=jax.tree.map(jnp.asarray, trained),
        prefill=lambda params, prompt, lengths, _: template.prefill(
            params, config, prompt, lengths
        ),
        step=lambda params: template.step(params, config),
        logits=partial(_logits_of_steps, lambda params: template.step(params, config), start),
        context=None,
    )


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Return which ids [V] end a sentence: a full stop, a new line, or the end of a document."""
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    ends = [piece.rstrip().endswith((".", "!", "?")) or "\n" in piece for piece in pieces]
    ends = np.asarray(ends)
    for special in (tokenizer.special.bos, tokenizer.special.eos):
        if special is not None:
            ends[special] = True
    return ends


def _maxent(lesson: Lesson) -> Generator:
    shard, tokenizer = lesson.shard, lesson.tokenizer
    size, begin = tokenizer.vocab_size, tokenizer.special.bos
    config = MaxEnt(vocab_size=size, order=2, words=min(WORDS, size), suffixes=SUFFIXES)
    pieces = [tokenizer.decode([i]) for i in range(size)]
    suffix_of = maxent.endings(pieces, SUFFIXES, length=3)
    params = maxent.init(config, shard.all_tokens, suffix_of)
    # A small text has smaller batches, for hundreds of steps at least.
    batch = min(max(len(shard.tokens) // 256, 16), 1024)
    fit = Fit(method="adagrad", rounds=ROUNDS_OF_MAXENT, l2=L2, rate=RATE, batch=batch)
    params, _ = maxent.train(config, params, shard.all_tokens, shard.offsets, fit, begin=begin)
    return Generator(
        name="maxent",
        about="maximum entropy over two words and a suffix",
        params=jax.tree.map(jnp.asarray, params),
        prefill=lambda params, prompt, lengths, _: maxent.prefill(config, prompt, lengths),
        step=lambda params: maxent.step(params, config),
        logits=partial(
            _logits_of_steps,
            lambda params: maxent.step(params, config),
            partial(maxent.start, config),
        ),
        context=None,
    )


def _vae(lesson: Lesson) -> Generator:
    tokens, width, size = lesson.shard.all_tokens, lesson.context, lesson.tokenizer.vocab_size
    special, vocabulary = lesson.tokenizer.special, size + 1  # the last id begins a text
    model = ModelConfig(
        **AUTOENCODER,
        topology="encoder_decoder",
        vocab_size=vocabulary,
        context=width + 1,
        positions="sinusoid",
        embed=Embed(scale="root"),
    )
    eos = size if special.eos is None else special.eos
    config = VAE(model=model, latent=LATENT, slots=SLOTS, start=size, eos=eos)
    rows = max(len(tokens) // width, 1)
    texts = np.resize(tokens, (rows, width)).astype(np.int32)
    fit = replace(FIT_OF_VAE, batch=max(FIT_OF_VAE.batch * WIDTH // max(width, WIDTH), 1))
    params, _ = vae.train(config, texts, np.full(rows, width), fit, seed=lesson.seed)
    latents = mixture.draws(config, DRAWS, keys.from_seed(lesson.seed))

    def logits(params: Any, batch: dict[str, Any]) -> Any:
        begin = partial(mixture.start, params["vae"], config, params["latents"], capacity=width)
        return _logits_of_steps(step, begin, params, batch)

    def step(params: Any) -> Any:
        return mixture.step(params["vae"], config)

    return Generator(
        name="vae",
        about=f"Transformer autoencoder, {DRAWS} draws of {LATENT} numbers",
        params={"vae": params, "latents": latents},
        prefill=lambda params, prompt, lengths, capacity: mixture.prefill(
            params["vae"], config, params["latents"], prompt, lengths, capacity
        ),
        step=step,
        logits=logits,
        context=width,
    )


BASELINES: dict[str, Callable[..., Generator]] = {
    "ngram": _ngram,
    "hmm": _hmm,
    "template": _template,
    "maxent": _maxent,
    "vae": _vae,
}


def check_baselines(kinds: Sequence[str]) -> None:
    """Raise ConfigError for an unknown baseline."""
    for kind in kinds:
        if kind not in BASELINES:
            choices = ", ".join(BASELINES)
            raise ConfigError(
                f"--baselines: {kind!r} is unknown{nearest(kind, BASELINES)}; there are {choices}"
            )


def _logits_of_steps(step: Any, start: Any, params: Any, batch: dict[str, Any]) -> Any:
    """Return the logits [B, T, V] of a batch by running a decoding step over its rows."""
    run = step(params)

    def more(cache, tokens):
        logits, cache = run(tokens, cache)
        return cache, logits

    _, logits = lax.scan(more, start(batch["tokens"].shape[0]), batch["tokens"].T)
    return logits.transpose(1, 0, 2)


def read_rows(
    generator: Generator, batch: dict[str, Any], vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (log probability of each target, of the likeliest id, whether they agree), [B, T].

    vocab_size: of the tokenizer; logits beyond it are padding of the table.
    """
    logits = generator.logits(generator.params, batch)[..., :vocab_size].astype(jnp.float32)
    logp = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logp, batch["targets"][..., None], axis=-1)[..., 0]
    return own, logp.max(axis=-1), logp.argmax(axis=-1) == batch["targets"]
