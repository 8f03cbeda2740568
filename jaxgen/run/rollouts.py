"""Rollouts: what a policy writes to prompts, judged, as the batch that it learns from.

All of a rollout is a function of the training state and its step, so that a run that goes on from a
checkpoint makes the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.data.pack import Batch, share
from jaxgen.data.preferences import blank_texts, write_text
from jaxgen.decoding.chain import Chain, chain, greedy
from jaxgen.decoding.detailed import decode_detailed
from jaxgen.decoding.processors.truncation import temperature
from jaxgen.errors import ConfigError, DataError
from jaxgen.mesh import place
from jaxgen.models import serving
from jaxgen.pretrained.generation_config import read_generation_config
from jaxgen.run import rewards
from jaxgen.run.rewards import Completions
from jaxgen.text.generate import prefill
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.model_steps import model_step
from jaxgen.train import policy
from jaxgen.train.log_probs import TEXTS
from jaxgen.train.state import State
from jaxgen.train.validate import validate_loss

ROLLOUT = 0x6A09E667  # folded into a step's key for what is sampled


class Rollouts:
    """Makes a step's batch of completions from a batch of prompts: with advantages, or a teacher's.

    run: a `job.Run` of objective.name=policy. Completions of `policy.iterations` steps in a row are
    the same; all but the first are learnt with the log-probabilities of the model that wrote them.
    With distill.teacher what it says of them takes the place of rewards (Agarwal et al. 2024).
    """

    def __init__(self, run: Any) -> None:
        self.run, self.settings = run, run.settings
        self.reward = rewards.load(run.settings.policy.reward)
        self._latest: tuple[Batch, dict[str, float]] | None = None

    def check(self) -> None:
        """Raise ConfigError where there is no reward, no answer to compare with and no teacher."""
        if self.settings.distill.teacher is not None:
            return
        first = self.run.ordered_rows("train").record(0)
        if self.settings.policy.reward is None and not rewards.has_answers([first]):
            raise ConfigError(
                "policy.reward=null compares a completion with the `answer` of its record, and "
                "there is none; give answers, or a module:function or FILE.py:function"
            )

    def __call__(self, state: State, prompts: Batch) -> tuple[Batch, dict[str, float]]:
        """Return the batch of this process, and metrics of all: reward, exact, length.

        prompts: of all processes, of the training split. The state must be at the first of its
        iterations where its completions are not held already.
        """
        step, asked = int(state.step), self.settings.policy
        if self._latest is None or step % asked.iterations == 0:
            key = jax.random.fold_in(jax.random.fold_in(state.key, step), ROLLOUT)
            self._latest = self._make(self.run.attached(state.params), prompts, key)
        return self._latest

    def _make(self, params: Any, prompts: Batch, key: Any) -> tuple[Batch, dict[str, float]]:
        asked = self.settings.policy
        prompts = {name: np.repeat(x, asked.group, axis=0) for name, x in prompts.items()}
        sampler = chain(temperature(asked.temperature))
        ids = self._write(params, prompts, key, sampler)
        batch = self._lay(prompts, ids)
        mine = share(len(ids), place.own_rows(self.run.mesh, len(ids)))
        if self.settings.distill.teacher is not None:
            batch = self.run.teacher.add({name: x[mine] for name, x in batch.items()})
            return batch, {"length": float(np.mean([*map(len, ids)]))}
        judged, metrics = self._judge("train", prompts["record"], ids)
        if asked.needs_old:
            batch["old"] = self._logps(params, batch)
        if asked.beta:
            batch["reference"] = self._logps(self.run.reference_params, batch)
        if asked.beta and asked.loss == "rloo":
            log_ratio = (batch["old"] - batch["reference"]) * batch["weights"]
            judged = judged - asked.beta * log_ratio.sum(1)
        scale = policy.SCALES[asked.loss]
        known = policy.advantages(jax.numpy.asarray(judged), asked.group, scale=scale)
        batch["advantage"] = np.asarray(known, np.float32)
        metrics["reward_std"] = float(judged.reshape(-1, asked.group).std(1, ddof=1).mean())
        return {name: x[mine] for name, x in batch.items()}, metrics

    def validate(
        self, params: Any, batches: Iterable[Batch], split: str = "valid"
    ) -> dict[str, float]:
        """Return means over the likeliest completion of each prompt, with loss: less the reward.

        With a teacher the loss is that of distillation, and `divergence` and further parts of it.
        """
        if self.settings.distill.teacher is not None:
            return validate_loss(self._taught_loss, params, self._taught(params, batches))
        sums, count = dict[str, float](), 0
        for prompts in batches:
            ids = self._write(params, prompts, jax.random.key(0), greedy())
            real = np.flatnonzero(prompts["weights"])
            metrics = self._judge(split, prompts["record"][real], [ids[at] for at in real])[1]
            sums = {name: sums.get(name, 0.0) + x * len(real) for name, x in metrics.items()}
            count += len(real)
        if not count:
            raise DataError("the split has no prompt; give it more")
        means = {name: value / count for name, value in sums.items()}
        return {"loss": -means["reward"], **means, "prompts": count}

    @cached_property
    def _taught_loss(self) -> Any:
        return self.run.judge()

    def _taught(self, params: Any, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the likeliest completions of prompts with what the teacher says of them."""
        for prompts in batches:
            ids = self._write(params, prompts, jax.random.key(0), greedy())
            batch = self.run.teacher.add(self._lay(prompts, ids))
            yield self._placed({name: x for name, x in batch.items() if name != "index"})

    @cached_property
    def stop(self) -> np.ndarray:
        """The ids that end a completion."""
        written = read_generation_config(self.run.folder)[0]
        model = LoadedModel(
            self.settings.model, None, self.run.tokenizer, generation_config=written
        )
        return np.asarray(model.stop, np.int32)

    @cached_property
    def _sample(self) -> Any:
        config, size = self.settings.model, self.run.tokenizer.vocab_size
        length = self.settings.objective.completion(self.settings.row_length)
        make = partial(_sample, config=config, known=size, length=length, stop=self.stop)
        return place.under(self.run.mesh, jax.jit(make))

    @cached_property
    def _token_logps(self) -> Any:
        asked, chunk = self.settings.policy, self.settings.train.loss_chunk
        make = lambda params, batch: policy.token_logps(  # noqa: E731
            params, self.settings.model, batch, temperature=asked.temperature, chunk=chunk
        )
        return place.under(self.run.mesh, jax.jit(make))

    def _placed(self, batch: Batch) -> Any:
        mesh, rows = self.run.mesh, len(batch["tokens"])
        if mesh is None:
            return batch
        mine = share(rows, place.own_rows(mesh, rows))
        return place.place_batch(mesh, {name: x[mine] for name, x in batch.items()}, rows)

    def _write(self, params: Any, prompts: Batch, key: Any, sampler: Chain) -> list[np.ndarray]:
        """Return the ids of the completion of each row, its end among them."""
        asked = self._placed({name: prompts[name] for name in ("tokens", "lengths")})
        tokens, sizes = place.fetch(self._sample(params, asked, key, sampler))
        return [row[:size] for row, size in zip(tokens, sizes, strict=True)]

    def _logps(self, params: Any, batch: Batch) -> np.ndarray:
        texts = self._placed({name: batch[name] for name in TEXTS})
        return np.asarray(place.fetch(self._token_logps(params, texts)), np.float32)

    def _lay(self, prompts: Batch, ids: list[np.ndarray]) -> Batch:
        batch = blank_texts((len(ids), self.settings.row_length))
        for at, written in enumerate(ids):
            prompt = prompts["tokens"][at, : prompts["lengths"][at]]
            mask = np.concatenate([np.zeros(len(prompt)), np.ones(len(written))])
            if prompts["weights"][at]:
                write_text(batch, (at,), np.concatenate([prompt, written]), mask)
        return batch | {"index": prompts["index"]}

    def _judge(
        self, split: str, numbers: np.ndarray, ids: list[np.ndarray]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Return the reward of each completion to the records of these numbers, and metrics."""
        rows = self.run.ordered_rows(split)
        records = [rows.record(int(number)) for number in numbers]
        texts = [self.run.tokenizer.decode(row[~np.isin(row, self.stop)].tolist()) for row in ids]
        tokens = np.full((len(ids), max(map(len, ids), default=0)), -1, np.int32)
        for at, row in enumerate(ids):
            tokens[at, : len(row)] = row
        known = Completions([record["prompt"] for record in records], texts, records, tokens)
        judged = self.reward(known)
        metrics = {"reward": float(judged.mean()), "length": float(np.mean([*map(len, ids)]))}
        if rewards.has_answers(records):
            metrics["exact"] = float(rewards.exact(known).mean())
        return judged, metrics


def _sample(
    params: Any,
    prompts: Any,
    key: Any,
    sampler: Chain,
    *,
    config: ModelConfig,
    known: int,
    length: int,
    stop: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    """Return completions [B, L] and how long each is; each row has its own key."""
    tokens, lengths = jax.numpy.asarray(prompts["tokens"]), jax.numpy.asarray(prompts["lengths"])
    params = serving.unroll(params, config)
    first, cache = prefill(params, config, tokens, lengths, tokens.shape[1] + length)
    step, keys = model_step(params, config, known), jax.random.split(key, tokens.shape[0])
    written = decode_detailed(step, cache, first, keys, sampler, length, top=0, stop=stop)
    return written.tokens, written.num_generated
