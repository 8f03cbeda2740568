"""What happened at each token of a text: the model's choice, what each processor did, the draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.decoding.chain import NOT_FINITE, Chain
from jaxgen.decoding.detailed import reason_of
from jaxgen.decoding.loop import DecodeSpec, loop, make_spec
from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.ops.cpu.argmax import argmax
from jaxgen.ops.random import gumbel
from jaxgen.text.batch_decoding import RequestBatch, failure
from jaxgen.text.batches import Rows, bucket, pad
from jaxgen.text.processors import names_in_chain
from jaxgen.text.programs import begin, step_of
from jaxgen.text.prompts import Prompt, requests_of
from jaxgen.text.session import Session

TOP = 6  # tokens that the model found likeliest, followed through the chain
UNTRACED = ("beams", "contrastive", "lookup", "draft", "samples", "best_of", "max_seconds")


class Draws(NamedTuple):
    """Of each of T tokens, at each of P stages: the model's logits, then after each processor.

    logprob, rank (1: the likeliest), best, entropy (nats), allowed (ids that are not forbidden):
    [T, P], of the chosen token where it is one token's. top_ids: [T, K], the model's likeliest, and
    top_logprobs: [T, P, K]. noise: [T], the random number of the chosen token, whose sum with its
    logit is the largest; rival: the id whose sum is next, by margin less. key: [T, 2].
    """

    logprob: Float[Array, "T P"]
    rank: Int[Array, "T P"]
    best: Int[Array, "T P"]
    entropy: Float[Array, "T P"]
    allowed: Int[Array, "T P"]
    top_ids: Int[Array, "T K"]
    top_logprobs: Float[Array, "T P K"]
    noise: Float[Array, "T"]
    rival: Int[Array, "T"]
    margin: Float[Array, "T"]
    key: Array
    reason: Int[Array, "T"]


@dataclass(frozen=True)
class Step:
    """One token of a trace: its `Draws` as plain numbers.

    forbidden_by: of the model's likeliest ids that were forbidden, the setting that did it. margin:
    None where no other id was left.
    """

    token: int
    logprob: list[float]
    rank: list[int]
    best: list[int]
    entropy: list[float]
    allowed: list[int]
    top_ids: list[int]
    top_logprobs: list[list[float | None]]
    forbidden_by: dict[int, str]
    noise: float
    rival: int
    margin: float | None
    key: tuple[int, int]


@dataclass(frozen=True)
class Trace:
    """How a text was made; ids are those of its tokenizer.

    stages: "model", then the setting of each processor of the chain, in its order.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    text: str
    reason: Reason
    stages: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def tokens(self) -> list[int]:
        """Return the new ids."""
        return [step.token for step in self.steps]

    def as_json(self) -> dict[str, Any]:
        """Return the trace as JSON-able data, with the settings that made it."""
        settings = {k: v for k, v in vars(self.prompt.settings).items() if v not in (None, ())}
        return {
            "prompt_ids": list(self.ids),
            "text": self.text,
            "reason": self.reason.name.lower(),
            "settings": settings,
            "stages": list(self.stages),
            "steps": [asdict(step) for step in self.steps],
        }


def trace(session: Session, prompt: Prompt) -> Trace:
    """Return how a session goes on from a prompt, token by token; the text is that of `generate`.

    Raises ConfigError for settings that make no single draw, and as `Session.run` does.
    """
    group = _group(session, prompt)
    request = group.requests[0]
    draws, tokens = _trace(*group.inputs, jnp.int32(0), length=group.length)
    state = group.begin(request)
    tokens = np.asarray(tokens).tolist()
    if NOT_FINITE in tokens:
        place = tokens.index(NOT_FINITE)
        raise failure(0, 0, np.asarray(tokens), int(draws.reason[place]))
    state.push(tokens)
    done = state.completion()
    stages = ("model", *names_in_chain(request.settings))
    draws = jax.tree.map(np.asarray, draws)
    steps = [_step(draws, stages, i, token) for i, token in enumerate(done.tokens)]
    ids = tuple(group.requests[0].ids)
    asked = prompt._replace(settings=request.settings)
    return Trace(asked, ids, done.text, done.reason, stages, tuple(steps))


def replay(session: Session, trace: Trace, position: int) -> int:
    """Return the token that is drawn again at a place of a trace, after the tokens before it."""
    if not 0 <= position < len(trace.steps):
        raise ConfigError(f"position={position} must be from 0 to {len(trace.steps) - 1}")
    group = _group(session, trace.prompt)
    rows = group.rows
    known = [*rows.prompt[0, : rows.widths[0]].tolist(), *trace.tokens[:position]]
    prompt, widths = pad([known])
    rows = rows._replace(prompt=prompt[:, : group.model.config.longest], widths=widths)
    inputs = (*group.parts[:3], rows, group.chain(), None)
    return int(_trace(*inputs, jnp.int32(position), length=1)[1][0])


def _group(session: Session, prompt: Prompt) -> RequestBatch:
    (requests,) = requests_of(session.model, [session.preferring(prompt)])
    settings = requests[0].settings
    for name in (*UNTRACED, *(["overflow"] if settings.overflow == "slide" else [])):
        if settings.gives(name):
            raise ConfigError(
                f"{settings.describe(name)}: a trace follows one text that is drawn token by "
                f"token in the context; leave it out"
            )
    return session.request_batch(requests)


@partial(jax.jit, static_argnames=("config", "kind", "length"))
def _trace(
    params: Any,
    config: Any,
    kind: Any,
    rows: Rows,
    sample: Chain,
    strings: Any,
    start: Any,
    *,
    length: int,
) -> tuple[Draws, Int[Array, "T"]]:
    """Return (draws, tokens) of the first row; past its end, it repeats its last token."""
    first, cache = begin(params, config, kind, rows, bucket(rows.prompt.shape[1] + length))
    about = (rows.stops, strings, start, rows.limits, rows.prompt, rows.widths)
    spec = make_spec(sample, first, rows.keys, length, *about)
    each = (length, len(sample.processors) + 1)
    real, whole = (partial(jnp.zeros, dtype=kind) for kind in (jnp.float32, jnp.int32))
    room = Draws(
        *(real(each), whole(each), whole(each), real(each), whole(each)),
        *(whole((length, TOP)), real((*each, TOP)), real(length), whole(length), real(length)),
        *(jnp.zeros((length, 2), jnp.uint32), whole(length)),
    )

    def observe(stats, state, logits, new, history):
        own = _draws(spec, state, logits, new, history)
        return jax.tree.map(lambda x, one: x.at[state.position].set(one), stats, own)

    state = loop(step_of(params, config, kind, rows), cache, spec, room, observe)
    return state.stats, state.tokens[0]


def _draws(spec: DecodeSpec, state: Any, logits: Array, new: Array, history: Any) -> Draws:
    """Return the numbers of one token."""
    logits = logits.astype(jnp.float32)
    stages = jnp.stack(spec.sample.stages(logits, history))[:, 0]  # [P, V]
    logprobs = jax.nn.log_softmax(stages, axis=-1)
    chosen = jnp.maximum(new[0], 0)
    own = logprobs[:, chosen]
    finite = jnp.isfinite(logprobs)
    entropy = -jnp.sum(jnp.where(finite, jnp.exp(logprobs) * logprobs, 0.0), axis=-1)
    _, top = jax.lax.top_k(stages[0], min(TOP, stages.shape[1]))
    top = jnp.pad(top, (0, TOP - top.shape[0]), constant_values=-1)
    keys = jax.vmap(jax.random.fold_in)(spec.keys, (spec.start + state.position)[None])
    noise = gumbel(keys, stages.shape[1])[0]
    sums = stages[-1] + noise
    rival = argmax(jnp.where(jnp.arange(len(sums)) == chosen, -jnp.inf, sums))
    stop_state = spec.advance_stop_state(state.stop_state, new, state.done)
    return Draws(
        own,
        1 + jnp.sum(logprobs > own[:, None], axis=-1),
        argmax(stages),
        entropy,
        jnp.sum(finite, axis=-1),
        top,
        logprobs[:, top],
        noise[chosen],
        rival,
        sums[chosen] - sums[rival],
        jax.random.key_data(keys)[0],
        reason_of(new, logits, stop_state, spec.is_stop(new))[0],
    )


def _step(draws: Draws, stages: tuple[str, ...], place: int, token: int) -> Step:
    own = {name: x[place] for name, x in draws._asdict().items() if name != "reason"}
    known = own["top_ids"] >= 0
    ids, logprobs = own["top_ids"][known].tolist(), own["top_logprobs"][:, known]
    finite = np.isfinite(logprobs)
    plain = {name: x.tolist() for name, x in own.items()} | {
        "key": tuple(own["key"].tolist()),
        "margin": float(own["margin"]) if np.isfinite(own["margin"]) else None,
        "top_ids": ids,
        "top_logprobs": [[x if np.isfinite(x) else None for x in row] for row in logprobs.tolist()],
    }
    forbidden_by = {
        id: stages[int(finite[:, i].argmin())] for i, id in enumerate(ids) if not finite[-1, i]
    }
    return Step(token=token, forbidden_by=forbidden_by, **plain)
