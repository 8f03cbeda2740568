"""Augmentation at few labels, and training with PGD against an attack, on docstrings by package.

    python benchmarks/adversarial.py augment     # 100 and 500 labels, five seeds, each kind apart
    python benchmarks/adversarial.py attack      # clean and PGD, three seeds: accuracy, success
    python benchmarks/adversarial.py rate        # queries a second of the attacks

A record is a docstring of Python's library, and its class the package that it is of, whose name is
taken out. 400 records are held out. A run is the library's step on the batches of `jaxgen train`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxgen
from jaxgen import data, tokens
from jaxgen.data import corpora
from jaxgen.data.augment.rows import Augmented
from jaxgen.data.augment.settings import AugmentSettings
from jaxgen.data.augment.words import frequent, neighbours_of
from jaxgen.measure import bootstrap
from jaxgen.text import tasks
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.tasks.attack import AttackSettings, attack, summary
from jaxgen.train.adversarial import perturbed
from jaxgen.train.mixup import mixup_loss
from jaxgen.train.settings import AdversarialSettings

PACKAGES = ("asyncio", "email", "importlib", "logging", "multiprocessing", "tkinter", "unittest",
            "xml")  # fmt: skip
EACH, HELD_OUT, WORDS, CONTEXT, BATCH = 150, 400, 30, 64, 32
KINDS = ("none", "replace", "insert", "swap", "delete", "keyboard", "pieces", "mixup")
EPSILONS = (0.05, 0.15)  # the vectors of tokens begin with a mean length of 0.16
NEARNESS = {"replace": {"similarity": 0.4}, "insert": {"similarity": 0.4}}


def records() -> list[tuple[str, str]]:
    """Return (text, package) of docstrings, in a fixed random order, as many of each at most."""
    docstrings: dict[str, list[str]] = {name: [] for name in PACKAGES}
    for module, parsed, _ in corpora._modules():
        name = re.split(r"[/.]", module)[0]
        for node in ast.walk(parsed) if name in docstrings else ():
            text = (
                ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""
            )
            words = re.sub(name, "", text or "", flags=re.IGNORECASE).split()[:WORDS]
            if len(words) >= 6 and (line := " ".join(words)) not in docstrings[name]:
                docstrings[name].append(line)
    rng = np.random.default_rng(0)
    rows = [
        (texts[i], name)
        for name, texts in docstrings.items()
        for i in rng.permutation(len(texts))[:EACH]
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


class Task:
    """The records, a tokenizer of them, and programs that are compiled once for all runs."""

    def __init__(self, home: Path) -> None:
        rows = records()
        self.held, self.pool, self.home = rows[:HELD_OUT], rows[HELD_OUT:], home
        self.tokenizer = tokens.train(
            tokens.TokenizerSettings(kind="bpe", vocab_size=2048), [text for text, _ in self.pool]
        )
        self.config = jaxgen.ModelConfig(
            vocab_size=self.tokenizer.vocab_size, context=CONTEXT, layers=1, d_model=64, heads=4,
            topology="encoder", head="classes", classes=len(PACKAGES), dropout=0.1,
        )  # fmt: skip
        self.optimizer = optax.adamw(2e-3, weight_decay=0.01)
        self.begin = jax.jit(partial(jaxgen.init, self.config))
        self.steps: dict[str, Any] = {}

    def step(self, name: str, loss: Any) -> Any:
        """Return the compiled step of a loss."""
        if name not in self.steps:
            self.steps[name] = jax.jit(
                partial(jaxgen.train_step, config=self.config, optimizer=self.optimizer, loss=loss),
                donate_argnums=0,
            )
        return self.steps[name]

    def train(
        self,
        labels: int,
        seed: int,
        steps: int,
        change: AugmentSettings | None,
        name: str,
        loss: Any,
    ) -> LoadedModel:
        """Train on the first records of the pool, in an order of the seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.pool))[:labels]
        file = self.home / f"{labels}.{seed}.jsonl"
        lines = [{"text": self.pool[i][0], "label": self.pool[i][1]} for i in chosen]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = data.DataSettings(
            files=(str(file),), sides=("text", "label"), valid_fraction=0, test_fraction=0
        )
        corpus = data.prepare(
            settings, self.tokenizer, self.home / "cache", form="classes", labels=PACKAGES
        )
        changes = () if change is None else (change,)
        stream = data.batches(
            corpus.train, context=CONTEXT, batch=BATCH, seed=seed,
            objective=Augmented(changes, self.tokenizer),
        )  # fmt: skip
        params = self.begin(jax.random.key(seed))
        state = jaxgen.train_state(params, self.optimizer, jax.random.key(seed + 100))
        step = self.step(name, loss)
        for _ in range(steps):
            batch = {k: v for k, v in next(stream).items() if k != "index"}
            state, _ = step(state, batch)
        stream.close()
        return LoadedModel(self.config, state.params, self.tokenizer, labels=PACKAGES)

    def accuracy(self, model: LoadedModel) -> float:
        """Return the part of the held-out records that are classified right."""
        ranked = tasks.classify(model, [t for t, _ in self.held], batch=HELD_OUT, overflow="cut")
        rows = zip(ranked, self.held, strict=True)
        return float(np.mean([row[0][0] == label for row, (_, label) in rows]))


def augment(task: Task, steps: int = 150, seeds: int = 5) -> None:
    """Print the gain of each kind over no change, with its interval over seeds."""
    for labels in (100, 500):
        plain: list[float] = []
        for kind in KINDS:
            mixed = partial(mixup_loss, alpha=0.2)
            change = None if kind in ("none", "mixup") else AugmentSettings(
                kind=kind, **NEARNESS.get(kind, {}))  # fmt: skip
            name, loss = ("mixup", mixed) if kind == "mixup" else ("clean", jaxgen.causal_loss)
            accuracies = [
                task.accuracy(task.train(labels, seed, steps, change, name, loss))
                for seed in range(seeds)
            ]
            plain = plain or accuracies
            gains = 100 * (np.array(accuracies) - np.array(plain))
            mean = bootstrap.mean(gains, seed=0)
            gain = f"{mean.value:+.1f} [{mean.low:+.1f}, {mean.high:+.1f}] points"
            accuracy = f"accuracy {100 * np.mean(accuracies):.1f} %"
            print(f"{labels} labels, {kind}: {accuracy}, gain {gain}", flush=True)


def against(task: Task, steps: int = 200, seeds: int = 3) -> None:
    """Print accuracy, and that and the success of the attack, trained clean and with PGD."""
    some = task.held[:200]
    texts = [text for text, _ in some]
    near, common = neighbours_of([t for t, _ in task.pool]), frozenset(frequent(texts, 50))
    labels = [PACKAGES.index(label) for _, label in some]
    for seed in range(seeds):
        for name, loss in (
            ("clean", jaxgen.causal_loss),
            *(
                (
                    f"pgd {epsilon:g}",
                    perturbed(
                        jaxgen.causal_loss,
                        AdversarialSettings(kind="pgd", epsilon=epsilon, weight=0.7),
                    ),
                )
                for epsilon in EPSILONS
            ),
        ):
            model = task.train(800, seed, steps, None, name, loss)
            figures = summary(attack(model, texts, labels, near, AttackSettings(keep=common)), 1.0)
            print(f"seed {seed}, {name}: accuracy {100 * task.accuracy(model):.1f} %, success "
                  f"{100 * figures['success_rate']:.1f} %", flush=True)  # fmt: skip


def rate(task: Task) -> None:
    """Print the queries a second of each method, once compiled."""
    texts = [text for text, _ in task.held[:100]]
    labels = [PACKAGES.index(label) for _, label in task.held[:100]]
    near, common = neighbours_of([t for t, _ in task.pool]), frozenset(frequent(texts, 50))
    model = task.train(800, 0, 150, None, "clean", jaxgen.causal_loss)
    for method in ("greedy", "beam", "hotflip"):
        settings = AttackSettings(method=method, keep=common)
        attack(model, texts[:8], labels[:8], near, settings)
        attack(model, texts, labels, near, settings)
        begun = time.perf_counter()
        results = attack(model, texts, labels, near, settings)
        figures = summary(results, time.perf_counter() - begun)
        print(json.dumps({"method": method, **figures}), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        {"augment": augment, "attack": against, "rate": rate}[sys.argv[1]](Task(Path(home)))
