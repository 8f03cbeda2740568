"""A policy's completions: how they are written, judged and learnt from; and runs that do so."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from random_params import random_params

import jaxgen
from jaxgen import data
from jaxgen.errors import ConfigError, DataError
from jaxgen.run import evaluation, inputs, rewards, training
from jaxgen.run.job import Run
from jaxgen.run.rewards import Completions
from jaxgen.run.settings import build_settings, resolve
from jaxgen.tokens.plain import Bytes
from jaxgen.train import policy
from jaxgen.verify import resume, stage

MODEL = jaxgen.ModelConfig(
    vocab_size=259, context=12, layers=1, d_model=8, heads=2, norm="rms", positions="rope",
    biases="none", init_std=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("rollouts")
    jaxgen.save(home / "base", MODEL, random_params(MODEL), tokenizer=Bytes())
    records = [{"prompt": f"q{n % 7}"[: 1 + n % 2], "answer": n, "n": n} for n in range(40)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    (home / "mine.py").write_text(
        "def even(prompts, completions, records):\n"
        "    assert prompts == [record['prompt'] for record in records]\n"
        "    return [len(text) + record['n'] % 2 for text, record in zip(completions, records)]\n"
        "def odd(tokens):\n    return (tokens[:, 0] % 2).astype(float)\n"
        "def breaks(prompts, completions, records):\n    return 1 / 0\n"
        "def few(prompts, completions, records):\n    return [1.0]\n"
        "def none(prompts, completions, records):\n    pass\n"
        "def words(prompts, completions, records):\n    return ['1.0'] * len(prompts)\n"
        "def nones(prompts, completions, records):\n    return [1.0, None]\n"
        "def square(prompts, completions, records):\n    return [[1.0]] * len(prompts)\n"
        "def nan(prompts, completions, records):\n    return [float('nan')] * len(prompts)\n"
    )
    return home


def settings_of(home, function="even", **sections):
    mapping = {
        "init_from": str(home / "base"), "objective": {"name": "policy", "target": 5},
        "data": {"files": [str(home / "prompts.jsonl")], "valid_fraction": 0.2},
        "policy": {"group": 2, "reward": function and f"{home / 'mine.py'}:{function}"},
        "train": {"steps": 4, "batch": 8, "warmup": 1, "learning_rate": 0.02, "log_every": 1,
                  "validate_every": 4, "track": []},
        "checkpoint": {"every": 2, "keep_last": 3},
    }  # fmt: skip
    for name, values in sections.items():
        mapping[name] = {**mapping.get(name, {}), **values}
    return build_settings(mapping)


def run_of(home, folder, **sections):
    settings = settings_of(home, **sections)
    tokenizer = inputs.make_tokenizer(settings)
    settings = resolve(settings, tokenizer)
    corpus = inputs.prepare(settings, tokenizer, home / "cache")
    return Run(settings, folder, tokenizer, corpus, devices=(jax.devices()[0],))


def test_a_rollout_is_of_whole_prompts_and_of_the_state_alone(home, tmp_path):
    asked = {"loss": "rloo", "beta": 0.1, "temperature": 0.7}
    run = run_of(home, tmp_path, policy=asked)
    state, prompts = run.begin(run.start()), next(run.batches())
    batch, metrics = run.rollouts(state, prompts)
    assert batch["tokens"].shape == (8, MODEL.context) == batch["old"].shape
    made, end = set(), Bytes.special.eos
    for row in range(8):
        size = prompts["lengths"][row // 2]
        ids = prompts["tokens"][row // 2, :size]
        length = int(batch["segments"][row].sum())
        text = np.append(batch["tokens"][row, :1], batch["targets"][row, :length])
        assert text[:size].tolist() == ids.tolist() and ids[0] == Bytes.special.bos
        written = text[size:].tolist()
        assert batch["weights"][row].tolist() == [
            float(size - 1 <= at < length) for at in range(MODEL.context)
        ]
        assert 1 <= len(written) <= 5 and (end not in written[:-1])
        made.add(tuple(written))
    assert len(made) > 5
    lengths = batch["weights"].sum(1)
    assert metrics["length"] == pytest.approx(lengths.mean())
    # The model is still the reference, so that nothing is taken off the rewards.
    np.testing.assert_allclose(batch["old"], batch["reference"], atol=1e-5)
    np.testing.assert_allclose(batch["advantage"].reshape(4, 2).sum(1), 0, atol=1e-5)
    again, _ = run_of(home, tmp_path, policy=asked).rollouts(state, prompts)
    assert all(np.array_equal(again[name], batch[name]) for name in batch)
    other, _ = run.rollouts(replace(state, step=state.step + 1), prompts)
    assert not np.array_equal(other["tokens"], batch["tokens"])  # each step samples anew
    # Rewards lose what the model has moved from the reference.
    later = jax.tree.map(lambda x: x * 1.5, state.params)
    state = jaxgen.train_state(later, run.optimizer, state.key)
    moved, metrics = run.rollouts(state, prompts)
    assert not np.array_equal(moved["tokens"], batch["tokens"])
    apart = ((moved["old"] - moved["reference"]) * moved["weights"]).sum(1)
    texts = [run.tokenizer.decode([i for i in row if i != end]) for row in written_of(moved)]
    known = [len(t) + run.ordered_rows("train").record(int(r))["n"] % 2
             for t, r in zip(texts, np.repeat(prompts["record"], 2), strict=True)]  # fmt: skip
    assert metrics["reward"] == pytest.approx(np.mean(known))
    expected = policy.advantages(jax.numpy.asarray(known - 0.1 * apart), 2, scale="others")
    np.testing.assert_allclose(moved["advantage"], expected, atol=1e-4)


def written_of(batch):
    return [row[mask > 0].tolist()
            for row, mask in zip(batch["targets"], batch["weights"], strict=True)]  # fmt: skip


def test_completions_are_kept_for_all_of_their_iterations(home, tmp_path):
    run = run_of(home, tmp_path, policy={"iterations": 2}, function="odd")
    batches, state = run.batches(), run.begin(run.start())
    first, second, third = (next(batches) for _ in range(3))
    assert np.array_equal(first["record"], second["record"])
    assert not np.array_equal(first["record"], third["record"])
    batch, _ = run.rollouts(state, first)
    state, metrics = run.step(state, batch)
    assert abs(float(metrics["objective"])) < 1e-5  # at first the ratio is 1
    held, _ = run.rollouts(state, second)
    assert held is batch and "old" in batch
    _, metrics = run.step(state, held)
    assert abs(float(metrics["objective"])) > 1e-4


def digests(run, step):
    text = (run / "checkpoints" / f"{step:08d}" / "manifest.json").read_text()
    return {name: row["sha256"] for name, row in json.loads(text)["arrays"].items()}


@pytest.mark.parametrize(
    "sections",
    [{"policy": {"beta": 0.1, "iterations": 2}, "train": {"accumulate": 2}, "function": "even"},
     {"adapter": {"kind": "lora", "rank": 2}, "function": "odd", "sample": {"examples": 1},
      "policy": {"loss": "dr_grpo", "beta": 0.1}}],
    ids=["grpo", "adapter"],
)  # fmt: skip
def test_a_policy_that_was_killed_ends_with_the_same_bits_and_is_evaluated(
    home, tmp_path, sections
):
    run, cache = tmp_path / "run", home / "cache"
    training.train(settings_of(home, **sections), run, cache=cache)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in lines if row["kind"] == "train"]
    assert {"reward", "reward_std", "exact", "length", "kl"} <= trained[0].keys()
    assert abs(trained[0]["kl"]) < 1e-6 < trained[-1]["kl"]
    valid = next(row for row in lines if row["kind"] == "valid")
    assert valid["loss"] == -valid["reward"]
    shown = dict(evaluation.evaluate(run, cache=cache))
    assert float(shown["reward"]) == pytest.approx(valid["reward"], abs=1e-3)
    assert shown["exact answers"] == f"{valid['exact']:.4f}"
    assert ("sample" in sections) == (run / "samples/4.txt").exists()
    expected = digests(run, 4)
    shutil.rmtree(run / "checkpoints/00000004")  # as if it had been killed before it was saved
    training.resume(run, [], cache=cache)
    assert digests(run, 4) == expected
    assert "valid reward" in (run / "log.txt").read_text()


def test_a_student_learns_its_own_texts_as_a_teacher_sees_them(home, tmp_path):
    teacher = MODEL.replace(layers=3, d_model=16, heads=4)
    jaxgen.save(home / "wise", teacher, random_params(teacher), tokenizer=Bytes())
    layers = {"layers": [[0, 2]], "hidden": 1.0, "attention": 1.0}
    taught = {"teacher": str(home / "wise"), "weight": 1.0, "loss": "jensen_shannon", "beta": 0.3}
    sections = {"distill": taught | layers, "function": None}
    run, cache = tmp_path / "run", home / "cache"
    training.train(settings_of(home, **sections), run, cache=cache)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert {"length", "divergence", "hidden", "attention"} <= trained[0].keys()
    valid = next(row for row in rows if row["kind"] == "valid")
    parts = sum(valid[name] for name in ("divergence", "hidden", "attention"))
    assert valid["loss"] == pytest.approx(parts, rel=1e-5)
    shown = dict(evaluation.evaluate(run, cache=cache))
    assert float(shown["divergence"]) == pytest.approx(valid["divergence"], abs=1e-3)
    expected = digests(run, 4)
    shutil.rmtree(run / "checkpoints/00000004")
    training.resume(run, [], cache=cache)
    assert digests(run, 4) == expected


KNOWN = Completions(["a", "b"], ["1 ", "x"], [{"answer": 1}, {"answer": "y"}], np.zeros((2, 1)))


def test_an_answer_is_exact_but_for_blanks():
    assert rewards.load(None)(KNOWN).tolist() == [1.0, 0.0]
    assert rewards.has_answers(KNOWN.records) and not rewards.has_answers([{"prompt": "a"}])


@pytest.mark.parametrize(
    ("name", "part"),
    [("breaks", "raised ZeroDivisionError: division by zero (mine.py:7)"),
     ("few", "returned 1 values for 2 completions"), ("none", "returned None for 2 completions"),
     ("words", "returned '1.0', which is no number"),
     ("nones", "returned None, which is no number"),
     ("square", "returned shape [2, 1] for 2 completions"),
     ("nan", "returned nan for the completion '1 '"),
     ("evn", "has no function 'evn' (did you mean 'even'?)")],
)  # fmt: skip
def test_a_reward_that_fails_is_named(home, name, part):
    with pytest.raises(ConfigError) as error:
        rewards.load(f"{home / 'mine.py'}:{name}")(KNOWN)
    assert part in str(error.value) and f"mine.py:{name}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [("no_such_module:f", "No module named 'no_such_module'"), ("nothing.py:f", "no such file"),
     ("broken.py:f", "SyntaxError"), ("mine", "is no module:function"), ("json:", "is no module")],
)  # fmt: skip
def test_a_reward_that_is_not_there_is_named(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError) as error:
        rewards.load(name)
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sections", "part"),
    [({"policy": {"group": 3}}, "train.batch=8 is not a multiple of policy.group=3"),
     ({"policy": {"iterations": 3}}, "checkpoint.every=2 is not a multiple of policy.iterations"),
     ({"objective": {"target": 12}}, "objective.target=12 leaves no room for a prompt"),
     ({"policy": {"temperature": 0.0}}, "temperature=0.0 must be greater than 0"),
     ({"objective": {"name": "causal", "target": None}}, "the policy section has no effect"),
     ({"train": {"z_loss": 0.1}}, "have no effect with objective.name=policy"),
     ({"distill": {"teacher": "x"}}, "give distill.weight=1 and no keep"),
     ({"distill": {"teacher": "x", "weight": 1.0}}, "policy.reward has no effect with distill")],
)  # fmt: skip
def test_settings_that_no_policy_can_have_are_refused(home, sections, part):
    with pytest.raises(ConfigError) as error:
        settings_of(home, **sections)
    assert part in str(error.value)


def test_prompts_that_leave_no_room_and_records_without_answers_are_named(home, tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "a" * 9}, {"prompt": "b", "answer": 1}]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"files": [str(tmp_path / "few.jsonl")], "valid_fraction": 0.0, "test_fraction": 0.0}
    run = run_of(home, tmp_path, data=files, function=None)
    (line,) = run.ordered_rows("train").notes()
    assert line.startswith("1 of 3 prompts have more than 7 tokens")
    assert run.ordered_rows("train").record(1) == rows[2]
    with pytest.raises(ConfigError, match="null compares a completion with the `ans"):
        run.check()
    refusing = run_of(home, tmp_path, data=files, objective={"too_long": "refuse"})
    with pytest.raises(DataError, match="is a prompt of 10 tokens, but"):
        refusing.ordered_rows("train")
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n')
    settings = data.DataSettings(files=(str(tmp_path / "bad.jsonl"),))
    with pytest.raises(DataError, match=r"bad\.jsonl:1: 'prompt' is a number"):
        list(data.documents(settings, form="prompts"))


def test_the_proof_of_resume_writes_completions_as_the_run_does(home):
    def launch(folder, name, until):
        made = []
        for row in stage.rows(*stage.make_run(folder, name), name):
            made.append(row)
            if until is not None and until(row):
                break
        return made

    found = resume.resume(
        settings_of(home), source=None, steps=3, mesh=None, cache=home / "cache", launch=launch
    )
    assert found.difference is None and [line.step for line in found.steps] == [0, 1, 2, 3]
