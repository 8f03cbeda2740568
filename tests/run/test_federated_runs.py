"""Federated runs: through the same loop, private by user, resumed bit for bit, refused by name."""

import json
import re
import shutil
from dataclasses import fields

import jax
import numpy as np
import pytest

from jaxgen import data, tokens
from jaxgen.errors import ConfigError
from jaxgen.privacy.settings import FederatedSettings
from jaxgen.run import shapes
from jaxgen.run.job import Run
from jaxgen.run.settings import build_settings, resolve
from jaxgen.run.step import step_of
from jaxgen.run.training import resume, train

FEDERATED = {"clients": 4, "local_steps": 2, "learning_rate": 0.5, "lost": 0.2}
PRIVACY = {"noise_multiplier": 4.0, "delta": 1e-2, "unit": "user", "expected": 2.0, "clip": 0.1}


def settings_of(files="x.jsonl", *, federated=FEDERATED, privacy=None, **more):
    sections = {
        "model": {"context": 8, "layers": 1, "d_model": 4, "heads": 1},
        "tokenizer": {"kind": "bytes"},
        "data": {"files": [str(files)], "split": "tail", "user": "author"},
        "train": {"steps": 2, "batch": 8, "optimizer": "sgd", "learning_rate": 1.0, "warmup": 1,
                  "log_every": 1, "validate_every": 2, "track": [], "federated": federated}
        | ({} if privacy is None else {"privacy": privacy}),
        "checkpoint": {"every": 1, "keep_last": 9},
    }  # fmt: skip
    for name, values in more.items():
        sections[name] = sections.get(name, {}) | values
    return build_settings(sections)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("clients")
    draw = np.random.default_rng(0)
    rows = [{"text": " ".join(f"w{w}" for w in draw.integers(0, 20, 9)),
             "author": f"user{draw.integers(0, 9)}"} for _ in range(40)]  # fmt: skip
    (home / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(settings_of(home / "text.jsonl", privacy=PRIVACY), home / "run", cache=home / "cache")
    return home / "run"


def test_a_private_run_promises_of_users_and_says_so(run):
    card = json.loads((run / "privacy.json").read_text())
    assert (card["unit"], card["units"], card["rows"]) == ("user: all text of a user", 8, 4)
    assert card["sampling"] == "Poisson, truncated to train.federated.clients"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = [row["epsilon"] for row in rows if row["kind"] == "train"]
    assert 0 < spent[0] < spent[1] == pytest.approx(card["epsilon"], rel=1e-5)


def test_a_run_goes_on_bit_for_bit(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "checkpoints" / "00000002")
    resume(other, [], cache=run.parent / "cache")
    tables = [
        json.loads((home / "checkpoints" / "00000002" / "manifest.json").read_text())["arrays"]
        for home in (run, other)
    ]
    assert tables[0] == tables[1] and tables[0]


OPTIONS = {
    "clients": {"clients": 2},
    "local_steps": {"local_steps": 1},
    "learning_rate": {"learning_rate": 0.7},
    "proximal": {"proximal": 0.1},
    "lost": {"lost": 0.9},
    "secure": {"secure": 1.0},
}


def test_each_option_of_clients_changes_the_step_or_what_it_reads(run, tmp_path):
    assert OPTIONS.keys() == {field.name for field in fields(FederatedSettings)}
    tokenizer, files = tokens.train(tokens.TokenizerSettings(kind="bytes"), ()), run.parent
    corpus = data.prepare(settings_of(files / "text.jsonl").data, tokenizer, tmp_path)

    def program(change):
        settings = resolve(settings_of(federated=FEDERATED | change), tokenizer)
        own = Run(settings, tmp_path, tokenizer, corpus)
        words = str(jax.make_jaxpr(step_of(settings, own.optimizer))(
            own.shapes, shapes.batch(settings)))  # fmt: skip
        batches = own.batches()
        read = next(batches)
        batches.close()
        return re.sub("0x[0-9a-f]+", "", words), *(x.tobytes() for x in read.values())

    plain = program({})
    assert program({}) == plain
    for name, change in OPTIONS.items():
        assert program(change) != plain, name


WRONG = {
    "user": ({"data": {"user": None}}, "needs data.user"),
    "rows": ({"federated": {"clients": 3}}, "clients=3 .* give batch=6, for"),
    "groups": ({"train": {"accumulate": 8}}, "clients=4; give a divisor of 4"),
    "secure": (
        {"federated": FEDERATED | {"secure": 1.0}, "train": {"accumulate": 2}},
        "sums all clients of a round at once",
    ),
    "few": ({"federated": {"clients": 2, "secure": 1.0}}, "needs clients=3 or more"),
    "off": ({"federated": {"local_steps": 2}}, "local_steps=2 has no effect with clients=0"),
    "unit": ({"privacy": PRIVACY | {"unit": "document"}}, "unit=document; take user"),
    "ghost": ({"privacy": PRIVACY | {"method": "ghost"}}, "method=ghost; take auto"),
    "clip": ({"train": {"clip": 0.5}}, "does not go with train.clip=0.5"),
    "objective": ({"objective": {"name": "prefix"}}, "objective.name=prefix; take causal"),
    "lost": ({"federated": {"clients": 4, "lost": 1.0}}, "lost=1.0 must be in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_federated_is_refused_by_name(name):
    change, words = WRONG[name]
    with pytest.raises(ConfigError, match=words):
        settings_of(**change)
