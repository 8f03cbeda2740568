"""Whether a request's result depends on its company: neighbours, padding, buckets, devices."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.errors import ProofError
from jaxgen.mesh import MeshSettings, device_mesh, place
from jaxgen.models import api, serving
from jaxgen.nn import stack
from jaxgen.text import batch_decoding
from jaxgen.text.batch_decoding import Completion, RequestBatch
from jaxgen.text.batches import Request, batch_size
from jaxgen.text.request import Generation
from jaxgen.text.session import Session, open_session

REQUESTS = 8
MODES = {
    "greedy": Generation(temperature=0.0),
    "drawn": Generation(temperature=1.0),
    "beams": Generation(beams=3),
}
ROUNDING = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}  # of the largest activation


@dataclass(frozen=True)
class _Surroundings:
    """What surrounds the requests: who stands beside them, in which order, on which devices."""

    name: str
    backwards: bool = False
    beside: tuple[Request, ...] = ()
    mesh: Any = None


class _Pair(NamedTuple):
    request: Request
    alone: Completion
    other: Completion


def invariance(folder: Path, *, length: int) -> list[tuple[str, str]]:
    """Return (name, value) rows that show each request's result to be the same in any company.

    Requests of random prompts are answered alone, in a batch, backwards, beside a long prompt and
    a long text, and spread over all devices; greedy, drawn and by beams. Raises ProofError with
    the first token that differs, and the first layer whose activations do; ConfigError for a
    folder that can't generate.
    """
    session = open_session(folder)
    requests, companies = _requests(session, length), _surroundings(session, length)
    rows = [
        ("model", f"{folder}: {session.config.layers} layers, context {session.context}"),
        ("requests", _describe(requests)),
    ]
    alone = {mode: _alone(session, requests, settings) for mode, settings in MODES.items()}
    for neighbours in companies:
        difference = 0.0
        for mode, settings in MODES.items():
            batched = _together(session, requests, settings, neighbours)
            for request, one, other in zip(requests, alone[mode], batched, strict=True):
                pair = _Pair(request, one, other)
                if one.tokens != other.tokens:
                    raise ProofError(_difference(session, requests, neighbours, mode, pair))
                difference = max(difference, _max_difference(one.logprobs, other.logprobs))
        bits = "bit-equal" if difference == 0 else f"at most {difference:.1e} apart, by rounding"
        rows.append((neighbours.name, f"the same tokens; log-probabilities {bits}"))
    if len(jax.devices()) == 1:
        rows.append(("devices", "only one here: nothing to compare"))
    modes = f"{', '.join(list(MODES)[:-1])} or by {list(MODES)[-1]}"
    return [*rows, ("proof", f"a request's result is the same in any company, {modes}")]


def _requests(session: Session, length: int) -> list[Request]:
    """Random prompts of many lengths, the same for every check of one model."""
    rng = np.random.default_rng(0)
    most = max(min(30, session.context - length), 2)
    sizes = np.linspace(1, most, REQUESTS).astype(int)
    num_ids = min(session.tokenizer.vocab_size, session.config.V)
    return [
        Request(rng.integers(0, num_ids, size).tolist(), length, Generation(), number)
        for number, size in enumerate(sizes)
    ]


def _surroundings(session: Session, length: int) -> list[_Surroundings]:
    long = max(session.context - length, 1)
    wide = Request([0] * long, length, Generation(), REQUESTS)
    late = Request([0], max(session.context - 1, 1), Generation(), REQUESTS + 1)
    variants = [
        _Surroundings(f"in a batch of {REQUESTS}"),
        _Surroundings("backwards", backwards=True),
        # More padding, and a larger bucket.
        _Surroundings(f"beside a prompt of {long} and a text of {late.limit}", beside=(wide, late)),
    ]
    devices = jax.devices()
    if len(devices) > 1:
        count = max(n for n in range(1, len(devices) + 1) if REQUESTS % n == 0)
        mesh = device_mesh.make_mesh(MeshSettings(data=count), devices[:count])
        variants.append(_Surroundings(f"on {count} devices", mesh=mesh))
    return variants


def _alone(session: Session, requests: Sequence[Request], settings: Generation) -> list[Completion]:
    return [_answers(session, [one._replace(settings=settings)])[0] for one in requests]


def _together(
    session: Session, requests: Sequence[Request], settings: Generation, neighbours: _Surroundings
) -> list[Completion]:
    group = [one._replace(settings=settings) for one in (*requests, *neighbours.beside)]
    if neighbours.backwards:
        group.reverse()
    if neighbours.mesh is not None:
        session = replace(session, params=_spread(session, neighbours.mesh))
    completions = place.under(neighbours.mesh, partial(_answers, session))(group)
    completions = completions[::-1] if neighbours.backwards else completions
    return completions[: len(requests)]


def _answers(session: Session, requests: Sequence[Request]) -> list[Completion]:
    size = batch_size(len(requests))
    group = RequestBatch(session.model, session.params, tuple(requests), size, 0, time.monotonic)
    return [completions[0] for completions in batch_decoding.complete(group)]


def _spread(session: Session, mesh: Any) -> Any:
    shapes, axes = api.abstract(session.config), api.axes(session.config)
    return jax.device_put(
        serving.stacked(session.params), place.state_shardings(mesh, shapes, axes)
    )


def _max_difference(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max(initial=0.0))


def _difference(
    session: Session, requests: Sequence[Request], neighbours: _Surroundings, mode: str, pair: _Pair
) -> str:
    """The line that says which token differs, and from which layer on."""
    pairs = zip(pair.alone.tokens, pair.other.tokens, strict=False)
    shorter = min(len(pair.alone.tokens), len(pair.other.tokens))
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
    tokens = [None if at >= len(x) else x[at] for x in (pair.alone.tokens, pair.other.tokens)]
    cause = _cause(session, requests, neighbours, pair, at)
    return (
        f"request {pair.request.number}, {mode}: new token {at + 1} is {tokens[0]} alone and "
        f"{tokens[1]} {neighbours.name}; {cause}"
    )


def _cause(
    session: Session, requests: Sequence[Request], neighbours: _Surroundings, pair: _Pair, at: int
) -> str:
    """The first layer whose activations of the text so far depend on the company."""
    config, params = session.config, serving.stacked(session.params)
    everyone = [*requests, *neighbours.beside]
    row = everyone.index(pair.request)
    texts = [list(one.ids) for one in everyone]
    sources = None if not session.reads_sources else [list(one.ids) for one in everyone]
    if session.reads_sources:
        texts = [[int(session.model.start or 0)] for _ in everyone]
    texts[row] = texts[row] + pair.alone.tokens[:at]
    one = _activations(params, config, [texts[row]], None if sources is None else [sources[row]])
    if neighbours.mesh is not None:
        params = _spread(session, neighbours.mesh)
    together = partial(_activations, params, config)
    many = place.under(neighbours.mesh, together)(texts, sources)
    differing = []
    for (name, alone), (_, other) in zip(one, many, strict=True):
        size = len(texts[row] if sources is None or name[:7] != "encoder" else sources[row])
        error = float(np.abs(alone[0, :size] - other[row, :size]).max())
        differing.append((name, error, float(np.abs(alone[0, :size]).max())))
    bound = ROUNDING[config.compute_dtype]
    for name, error, scale in differing:
        if error > bound * scale:
            return f"from {name} on it depends on its company: {error:.1e} apart of {scale:.1e}"
    for name, error, scale in differing:
        if error > 0:
            return (
                f"rounding sets in at {name} ({error:.1e} of {scale:.1e}) and tips a near tie; "
                f"compute_dtype={config.compute_dtype}, float32 rounds least"
            )
    return "no layer of a full forward pass differs, so the cache or the draw does: report it"


def _activations(
    params: Any, config: ModelConfig, texts: list[list[int]], sources: list[list[int]] | None
) -> list[tuple[str, np.ndarray]]:
    """(name, activations [B, T, ...]) in the order in which the model makes them."""
    tokens, _ = _pad(texts)
    if sources is None:
        taps = _decoder_taps(params, config, tokens, None)
        return _in_order(jax.device_get(taps), config, "")
    source, segments = _pad(sources)
    towers = jax.device_get(_both_taps(params, config, tokens, source, segments))
    encoder, decoder = towers
    ordered = _in_order(encoder, config.encoder(), "encoder/")
    return [*ordered, *_in_order(decoder, config, "")]


def _pad(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, (np.arange(width) < [[len(row)] for row in rows]).astype(np.int32)


@partial(jax.jit, static_argnums=1)
def _decoder_taps(params, config, tokens, memory):
    out = api.apply(params, config, tokens, memory=memory, taps=("*",))
    return out.taps | {"logits": out.logits}


@partial(jax.jit, static_argnums=1)
def _both_taps(params, config, tokens, source, segments):
    memory = api.encode(params, config, source, segments=segments, taps=("*",))
    return memory.taps, _decoder_taps(params, config, tokens, memory._replace(taps=()))


PARTS = ("attn_out", "cross_out", "feed_out", "out")


def _in_order(taps: Any, config: ModelConfig, tower: str) -> list[tuple[str, np.ndarray]]:
    def parts() -> Iterator[tuple[str, np.ndarray]]:
        for layer in range(config.layers):
            path, index = stack.taps_path(config, layer)
            for part in PARTS:
                key = f"{tower}{path}/{part}"
                if key in taps:
                    value = np.asarray(taps[key])
                    yield f"{tower}layer {layer} {part}", value if index is None else value[index]

    def named(*names: str) -> list[tuple[str, np.ndarray]]:
        return [(f"{tower}{n}", np.asarray(taps[f"{tower}{n}"])) for n in names
                if f"{tower}{n}" in taps]  # fmt: skip

    return [*named("embedded"), *parts(), *named("hidden", "logits")]


def _describe(requests: Sequence[Request]) -> str:
    sizes = [len(one.ids) for one in requests]
    return (
        f"{len(requests)} prompts of {min(sizes)} to {max(sizes)} tokens, {requests[0].limit} new"
    )
