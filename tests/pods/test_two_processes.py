"""Two processes train one run: as one does, through a kill, a stop and a change of their number."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import fake_devices
import forked
import jax
import numpy as np
import pytest

import jaxgen
from jaxgen.run import read_settings, train
from jaxgen.store import Checkpoints
from jaxgen.tokens.plain import Bytes

CONFIG = """
model: {context: 16, layers: 1, d_model: 8, heads: 2, dropout: 0.1, vocab_size: 260}
tokenizer: {kind: bytes}
data: {files: [text.txt], split: tail, valid_fraction: 0.2, test_fraction: 0.0}
train: {steps: 12, batch: 8, warmup: 2, log_every: 1, validate_every: 6, validate_batches: 2}
checkpoint: {every: 4, keep_best: 0, keep_last: 9}
"""
HERE = Path(__file__).parent
PEERS = 8.0  # seconds of silence after which a process is taken for lost

nightly = pytest.mark.skipif(
    not os.environ.get("JAXGEN_NIGHTLY"), reason="a minute each: JAXGEN_NIGHTLY=1"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    words = ["the", "of", "value", "return", "list", "string", "is"]
    text = "\n\n".join(" ".join(rng.choice(words, 30)) for _ in range(60))
    (folder / "text.txt").write_text(text)
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def environment(home, **more) -> dict:
    return (
        dict(os.environ)
        | {
            "JAXGEN_CACHE": str(home / "cache"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        | more
    )


def run(home, commands, **more):
    """Run commands at once; return (exit code, output, seconds until the end) of each."""
    began = time.monotonic()
    processes = [forked.program(words, environment(home, **more), home) for words in commands]
    found: list[Any] = [None] * len(processes)
    for index in sorted(range(len(processes)), key=lambda index: "freezes" in commands[index]):
        if "freezes" in commands[index]:
            processes[index].kill()
        found[index] = (*processes[index].end(240), time.monotonic() - began)
    return found


def pair(home, out, at=(0, 0), number=(0, 0), words=((), ()), config="tiny.yaml", **more):
    """Run two processes of `jaxgen train`; each may signal itself before a step."""
    address, program = f"127.0.0.1:{port()}", HERE / "recorded.py"
    return run(
        home,
        [
            [
                *(program, f"{out}.rows{i}", at[i], int(number[i])),
                *("train", config, "--out", out, "--coordinator", address),
                *("--processes", 2, "--process", i, "--peer-timeout", PEERS, *words[i]),
            ]
            for i in range(2)
        ],
        **more,
    )


def members(home, *deeds):
    address, program = f"127.0.0.1:{port()}", HERE / "member.py"
    return run(home, [[program, address, len(deeds), i, name] for i, name in enumerate(deeds)])


def fails(found, code):
    """Return the one line of error that a process has ended with."""
    assert found[0] == code, found[1]
    assert "Traceback" not in found[1]
    (line,) = [line for line in found[1].splitlines() if line.startswith("jaxgen: ")]
    return line


@pytest.fixture(scope="module")
def one(home):
    """The run of a single process that nobody has interrupted."""
    return trained_alone(home, "one")


def trained_alone(home, out):
    settings = read_settings(home / "tiny.yaml", [f"data.files=[{home / 'text.txt'}]"])
    rows = []
    from jaxgen.data.loader import Batches

    following = Batches.__next__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Batches, "__next__", lambda self: rows.append(batch := following(self)) or batch
        )
        train(settings, home / out, cache=home / "cache")
    return [batch["index"].tolist() for batch in rows]


@pytest.fixture(scope="module")
def killed(home, one):
    """Process 1 kills itself before step 7, after the checkpoint of step 4."""
    return pair(home, "two", at=(0, 7), number=(0, signal.SIGKILL))


@pytest.fixture(scope="module")
def stopped(home, killed):
    """Both again; process 1 is told to stop at step 9."""
    return pair(home, "two", at=(0, 9), number=(0, signal.SIGTERM))


@pytest.fixture(scope="module")
def gone_on(home, stopped):
    """The rows that a single process sees, which goes on from there to the end."""
    return trained_alone(home, "two")


def seen(home, out, process):
    lines = (home / f"{out}.rows{process}").read_text().splitlines()
    return [(row["step"], row["rows"]) for row in map(json.loads, lines)]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["kind"]) for row in rows], [row["loss"] for row in rows]


def checkpoints(folder):
    return Checkpoints(folder / "checkpoints", keep_last=9, keep_best=0, fingerprints={})


CLIENTS = """
model: {context: 16, layers: 1, d_model: 8, heads: 2}
tokenizer: {kind: bytes}
data: {files: [clients/*.txt], split: tail, user: file}
train: {steps: 3, batch: 8, optimizer: sgd, learning_rate: 1.0, warmup: 1, log_every: 1,
  validate_every: 3, federated: {clients: 4, local_steps: 2, lost: 0.3, secure: 1.0}}
"""


@nightly
def test_two_processes_train_clients_as_one_does(home):
    (home / "clients").mkdir()
    for i in range(6):
        (home / f"clients/{i}.txt").write_text(f"text of client {i} " * (10 + 9 * i))
    (home / "clients.yaml").write_text(CLIENTS)
    alone = run(home, [["-m", "jaxgen", "train", "clients.yaml", "--out", "alone"]])
    both = pair(home, "both", words=(["mesh.data=2"],) * 2, config="clients.yaml")
    assert [code for code, *_ in [*alone, *both]] == [0, 0, 0], (alone, both)
    (steps, one), (others, two) = losses(home / "alone"), losses(home / "both")
    assert steps == others
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_when_one_of_two_processes_is_killed_the_other_ends_within_a_minute_and_says_why(killed):
    (code, said, seconds), (killed_code, _, before) = killed[0], killed[1]
    assert killed_code == -signal.SIGKILL
    line = fails(killed[0], 5)
    assert "process 1 (" in line and "is lost" in line and "newest checkpoint" in line
    assert seconds - before < 60
    assert (code, "Fatal Python error" in said) == (5, False)


def test_the_rest_resumes_and_a_stop_of_one_stops_both_at_one_step_with_a_whole_checkpoint(
    home, stopped
):
    for code, said, _ in stopped:
        assert code == 75, said
    said = stopped[0][1]
    assert "resuming at step 4 of 12" in said and "stopped at step 9 and saved" in said
    kept = checkpoints(home / "two")
    assert [step for step in kept.steps() if step <= 9] == [4, 8, 9]
    assert kept.verify(9) == []
    names = {path.name for path in (home / "two/checkpoints/00000009/pieces").iterdir()}
    assert names == {"00000.safetensors", "00001.safetensors"}


def test_only_process_0_speaks_and_writes(stopped, gone_on, home):
    assert "step 9/12" in stopped[0][1] and "step" not in stopped[1][1]
    assert losses(home / "one")[0] == losses(home / "two")[0]


def test_the_rows_of_a_step_and_their_order_do_not_depend_on_the_processes(home, one, gone_on):
    mine = [seen(home, "two", process) for process in (0, 1)]
    # Killed before step 7; again from step 5; process 0 had taken batch 7 when it heard of it.
    assert [step for step, _ in mine[1]] == [*range(1, 7), *range(5, 10)]
    for (step, first), (same, second) in zip(mine[0][-5:], mine[1][-5:], strict=True):
        assert step == same and first + second == one[step - 1]
    for step, rows in mine[0] + mine[1]:
        assert rows in (one[step - 1][:4], one[step - 1][4:])
    assert gone_on == one[9:]


def test_the_curve_of_two_processes_is_that_of_one_through_all_of_it(home, gone_on):
    np.testing.assert_allclose(losses(home / "two")[1], losses(home / "one")[1], rtol=1e-5)
    ends = [checkpoints(home / name).read(12)["params"] for name in ("one", "two")]
    for alone, pair in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(alone, pair, rtol=1e-4, atol=1e-6)


def test_a_process_with_another_config_is_refused_by_all_before_anything_is_written(home):
    words = (("train.seed=1",), ("train.seed=2",))
    for found in pair(home, "never", words=words):
        line = fails(found, 2)
        assert "process 1 (" in line and "has train.seed='2', process 0 (" in line and "'1'" in line
    assert not (home / "never").exists()


@pytest.mark.parametrize("how", ["dies", "vanishes"])
def test_the_death_of_the_coordinator_ends_the_others_with_one_line(home, how):
    killed, other = members(home, how, "sleeps")
    assert killed[0] == -signal.SIGKILL
    line = fails(other, 5)
    assert "process 0 (" in line and "is lost" in line and other[2] - killed[2] < 60


@pytest.mark.parametrize(
    ("deeds", "codes", "part"),
    [
        (("sleeps", "fails"), (5, 7), "has ended with exit code 7: text.txt is empty"),
        (("breaks", "sleeps"), (70, 5), "process 0 ("),
        (("sleeps", "told"), (75, 75), "was told to stop"),
    ],
)
def test_a_process_that_ends_tells_the_others_why(home, deeds, codes, part):
    found = members(home, *deeds)
    assert tuple(code for code, _, _ in found) == codes, found
    said = found[deeds.index("sleeps")][1]
    assert part in said and said.count("jaxgen: error") == 1 and max(f[2] for f in found) < 60


def test_a_process_whose_native_call_holds_pythons_lock_is_not_lost(home):
    found = members(home, "waits", "holds")
    assert [code for code, _, _ in found] == [0, 0], found


def drop_after(folder, step):
    """Put a run back to one of its checkpoints."""
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)


@nightly
def test_a_checkpoint_of_any_mesh_and_process_count_goes_on_on_any_other(home, one):
    """Two processes of two devices, then one of four, two of one, and one of one."""
    forms = [("mesh=fsdp:4",), ("mesh=data:2,tensor:2",), ("mesh=fsdp:2",), ("mesh=data:1",)]
    for form, (count, each), begin in zip(
        forms, [(2, 2), (1, 4), (2, 1), (1, 1)], (0, 4, 4, 8), strict=True
    ):
        drop_after(home / "moved", begin) if begin else None
        if count == 2:
            found = pair(home, "moved", words=(form, form), **fake_devices.flags(each))
        else:
            words = ["-m", "jaxgen", "train", "tiny.yaml", "--out", "moved", *form]
            found = run(home, [words], **fake_devices.flags(each))
        assert [code for code, _, _ in found] == [0] * count, found[0][1] + found[-1][1]
        if begin:
            assert f"resuming at step {begin} of 12" in found[0][1]
        np.testing.assert_allclose(losses(home / "moved")[1], losses(home / "one")[1], rtol=1e-5)


@nightly
def test_two_processes_that_were_killed_end_bit_equal_to_two_that_were_not(home, stopped):
    assert [code for code, _, _ in pair(home, "whole")] == [0, 0]
    survivor, _ = pair(home, "again", (0, 7), (0, signal.SIGKILL))
    assert survivor[0] == 5
    assert [code for code, _, _ in pair(home, "again")] == [0, 0]
    for index in range(2):
        name = f"checkpoints/00000012/pieces/{index:05d}.safetensors"
        assert (home / "again" / name).read_bytes() == (home / "whole" / name).read_bytes()


POLICY = """
init_from: base
data: {files: [asks.jsonl], valid_fraction: 0.2, test_fraction: 0.0}
objective: {name: policy, target: 5}
policy: {group: 4, beta: 0.05, reward: "reward.py:even"}
train: {steps: 4, batch: 16, warmup: 1, log_every: 1, validate_every: 4, learning_rate: 1.0e-2}
"""
REWARD = """
def even(prompts, completions, records):
    return [sum(map(ord, text)) % 7 for text in completions]
"""


@nightly
def test_a_policy_of_two_processes_writes_and_learns_what_that_of_one_does(home):
    sizes = {"layers": 1, "d_model": 8, "heads": 2, "positions": "rope", "init_std": 0.3}
    config = jaxgen.ModelConfig(vocab_size=259, context=16, **sizes)
    jaxgen.save(home / "base", config, jaxgen.init(config, jax.random.key(0)), tokenizer=Bytes())
    rows = [json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) for n in range(40)]
    for name, text in (("asks.jsonl", "\n".join(rows)), ("p.yaml", POLICY), ("reward.py", REWARD)):
        (home / name).write_text(text)
    ((code, said, _),) = run(home, [["-m", "jaxgen", "train", "p.yaml", "--out", "policy"]])
    assert code == 0, said
    assert [code for code, _, _ in pair(home, "policies", config="p.yaml")] == [0, 0]
    found, expected = losses(home / "policies"), losses(home / "policy")
    assert found[0] == expected[0] and len(found[0]) == 5
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


@nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_frozen_is_lost_as_well(home, victim):
    deeds = ["sleeps", "sleeps"]
    deeds[victim] = "freezes"
    found = members(home, *deeds)
    assert found[1 - victim][0] == 5 and f"process {victim} (" in found[1 - victim][1]
