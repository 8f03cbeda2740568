"""A run that was killed, stopped or damaged ends as the one that never was, bit for bit.

What else reads the run that nobody has interrupted stands here too: a file is one worker's, which
trains it once.
"""

import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import commands
from commands import measured

from jaxgen.profile import trace
from jaxgen.store import Checkpoints

UNSAMPLED = "sample.prompts=[]"  # which changes no number, and saves a compilation


def digests(folder: Path, step: int) -> dict:
    """The sha256 of every array of a checkpoint: parameters, optimizer, key, step, health."""
    text = (folder / "checkpoints" / f"{step:08d}" / "manifest.json").read_text()
    return {name: row["sha256"] for name, row in json.loads(text)["arrays"].items()}


def losses(folder: Path) -> list:
    names = ("step", "kind", "loss", "grad_norm", "learning_rate", "bits_per_byte")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(row.get(name) for name in names) for row in rows]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*"))


def metrics(folder: Path) -> dict:
    """What each checkpoint knows of its validation, by step."""
    manifests = [path / "manifest.json" for path in (folder / "checkpoints").glob("[0-9]*")]
    records = [json.loads(path.read_text()) for path in manifests]
    return {r["step"]: (r["metric"], r["extra"]["valid_loss"]) for r in records}


def wait_for(condition, process, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.said()
        assert time.monotonic() < end, process.said()
        time.sleep(0.002)


def at_step(folder, step):
    def reached():
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return len(lines) >= step

    return reached


def saving(folder, after):
    def busy():
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        done = [int(name) for name in names if name.isdigit()]
        return any(name.startswith(".tmp-") for name in names) and len(done) >= after

    return busy


def test_a_run_killed_in_training_and_in_a_save_shares_its_folder_with_nobody_and_ends_bit_equal(
    finished, config, start, finish, here, tmp_path
):
    folder = tmp_path / "killed"
    for condition in (at_step(folder, 27), saving(folder, 2), at_step(folder, 90)):
        slowly = partial(commands.slow_training, 0.05)  # so that it isn't done before we look
        process = start("train", config, "--out", folder, UNSAMPLED, plant=slowly)
        wait_for(condition, process)
        if not checkpoints(folder)[1:]:
            process.send_signal(signal.SIGSTOP)
            # As long as it lives, nobody else may train there.
            code, said = here("train", config, "--out", folder)
            assert code == 3 and str(process.pid) in said and said.count("\n") == 2, said
        before = checkpoints(folder)
        process.kill()
        assert process.end()[0] == -signal.SIGKILL
        # What was complete stays complete; at most the newest is new.
        assert set(before) - set(checkpoints(folder)) <= set(before[:-1])
    code, said = finish("train", config, "--out", folder, UNSAMPLED)
    assert code == 0 and "resuming at step" in said, said
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert digests(folder, 120) == digests(finished, 120)
    assert losses(folder) == losses(finished)
    assert len(losses(folder)) == 120 + 3


def planted(process, moment):
    return lambda: f"planted: {moment}" in process.said()


def test_a_run_that_is_interrupted_twice_says_what_is_lost(config, start, tmp_path):
    folder, every = tmp_path / "twice", ("train.validate_every=3", "checkpoint.every=1")
    process = start(
        "train", config, "--out", folder, UNSAMPLED, *every, plant=commands.stuck_validating
    )
    wait_for(planted(process, "validating"), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code, said = process.end()
    kept = int(checkpoints(folder)[-1])
    line = f"not saved since step {kept}; the same command goes on from step {kept}"
    assert code == 130 and said.count(f"interrupted twice: {line}\n") == 1, said
    assert (folder / "log.txt").read_text().endswith(f"interrupted twice: {line}\n")


@dataclass(frozen=True)
class Stop:
    """A signal at a moment of a run; `step`: of the checkpoint there is then, None for none."""

    number: int
    moment: str
    step: int | None
    plant: object = None
    wait: object = None


STOPS = (
    Stop(signal.SIGINT, "preparing", None, plant=commands.stuck_preparing),
    Stop(signal.SIGTERM, "compiling", None, plant=commands.stuck_compiling),
    Stop(signal.SIGTERM, "training", 7, commands.slow_training, lambda f: at_step(f, 7)),
    Stop(signal.SIGTERM, "saving", 20, commands.slow_saving),
    Stop(signal.SIGINT, "validating", 40, partial(commands.endless_validating, 1)),
    Stop(signal.SIGTERM, "sampling", 40, commands.stuck_sampling),
    Stop(signal.SIGTERM, "validating", 80, commands.stuck_validating),
    # The first is the pending validation of step 80.
    Stop(signal.SIGTERM, "validating", 120, partial(commands.endless_validating, 2)),
)


def test_told_to_stop_at_any_moment_a_run_saves_ends_with_75_and_goes_on_bit_equal(
    finished, config, start, finish, tmp_path
):
    folder, reached = tmp_path / "stopped", 0
    for stop in STOPS:
        words = () if stop.moment == "sampling" else (UNSAMPLED,)
        process = start("train", config, "--out", folder, *words, plant=stop.plant)
        wait_for(stop.wait(folder) if stop.wait else planted(process, stop.moment), process)
        process.send_signal(stop.number)
        told = time.monotonic()
        code, text = process.end()
        assert code == 75 and "Traceback" not in text, text
        assert time.monotonic() - told < 30, "half a minute is what a scheduler grants"
        if stop.step is None:
            assert "stopped with nothing left to save" in text and not checkpoints(folder), stop
            continue
        newest = checkpoints(folder)[-1]
        assert stop.step <= newest <= stop.step + (stop.moment in ("training", "saving")) * 20, stop
        assert f"stopped at step {newest} and saved" in text
        if reached:
            assert f"resuming at step {reached} of 120" in text
        store = Checkpoints(folder / "checkpoints", keep_last=2, keep_best=1, fingerprints={})
        assert store.verify(newest) == []
        reached = newest
    code, said = finish("train", folder, UNSAMPLED)
    assert code == 0 and "all 120 steps are made" in said, said
    assert digests(folder, 120) == digests(finished, 120)
    assert losses(folder) == losses(finished)
    assert metrics(folder)[120] == metrics(finished)[120] != (None, None)
    assert not list(folder.rglob(".tmp-*"))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished, finish, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    kept = checkpoints(folder)
    files = [p for p in (folder / "checkpoints" / f"{kept[-1]:08d}").rglob("*") if p.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    code, said = finish("train", folder, UNSAMPLED)
    assert code == 0, said
    assert f"resuming at step {kept[-2]} of 120" in said
    assert "warning: " in said and victim.name in said
    assert digests(folder, 120) == digests(finished, 120)


def test_a_run_of_another_config_is_refused_and_left_alone(finished, config, here):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    code, said = here("train", config, "--out", finished, "model.layers=3", "train.batch=4")
    assert code == 2 and said.count("error: ") == 1, said
    assert "model.layers is 2 there, 3 here" in said and "train.batch is 8 there, 4 here" in said
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert {p.name for p in after} == {p.name for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed <= {"LOCK"}


def test_settings_of_steps_to_come_may_change_where_a_run_is_told_to_go_on(finished, config, here):
    code, said = here("train", config, "--out", finished, "train.steps=130")
    assert code == 2 and f"`jaxgen train {finished} train.steps=130` to go on" in said, said
    code, said = here("train", finished, "train.steps=100")
    assert code == 2 and "has made 120 steps already; give train.steps=120 or more" in said, said
    code, said = here("train", finished, "train.learning_rate=1.0")
    assert code == 2 and "so train.learning_rate=1.0 (was 0.001) changes nothing" in said, said
    code, said = here("train", finished, "train.steps=130", "train.seed=1")
    assert code == 2 and "train.seed is 0 there, 1 here" in said and "steps is" not in said, said


def test_a_changed_corpus_is_refused_and_one_that_moved_is_known(finished, corpus, here, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    text = corpus.read_text()
    try:
        corpus.write_text(text + json.dumps({"text": "one more"}) + "\n")
        for verb in ("train", "eval"):
            code, said = here(verb, folder)
            assert code == 7 and f"the text is not what {folder} was begun with" in said, said
        other = here("eval", folder, f"data.files=[{corpus}]")
    finally:
        corpus.write_text(text)
    assert other[0] == 0 and "all of data.files" in other[1]
    moved = tmp_path / "moved [1].jsonl"
    moved.write_text(text)
    code, said = here("eval", folder, f"data.files=['{moved}']", "--step", "best")
    assert code == 0 and "other text" not in said, said
    assert here("train", folder, f"data.files=['{moved}']")[0] == 0
    assert str(moved) in (folder / "config.yaml").read_text()


def test_a_streak_of_bad_steps_ends_with_a_post_mortem_and_keeps_the_checkpoint(
    config, here, tmp_path
):
    folder = tmp_path / "diverged"
    words = [
        "train.schedule=linear",
        "train.learning_rate=1e12",
        "train.clip=null",
        "train.warmup=0",
        "checkpoint.every=1",
        "train.optimizer=lion",
    ]
    code, said = here("train", config, "--out", folder, *words)
    assert code == 6, said
    assert "bad steps in a row" in said and "row" in said and said.strip().count("\n") < 80
    assert "Traceback" not in said
    (report,) = folder.glob("post-mortem-*.json")
    found = json.loads(report.read_text())
    assert found["rows"] and found["examples"] and str(found["step"]) in said
    assert checkpoints(folder)


def test_the_run_folder_holds_all_that_its_use_needs(finished, finish, tmp_path):
    names = {path.name for path in finished.iterdir()}
    wanted = {
        "config.yaml",
        "tokenizer",
        "checkpoints",
        "metrics.jsonl",
        "samples",
        "env.json",
        "log.txt",
        "loss.png",
        "events",
    }
    assert wanted <= names
    elsewhere = tmp_path / "copy"
    shutil.copytree(finished, elsewhere)
    words = ("generate", elsewhere, "--prompt", "the ", "--max-new-tokens", 12)
    code, said = finish(*words)
    assert code == 0 and said.startswith("the ") and len(said) > 5, said
    code, again = finish(*words, "--profile")
    assert code == 0 and again.startswith(said), again
    assert "\nprofile: " in again and "GB/s" in again, again
    assert list((elsewhere / "profile").rglob("*.xplane.pb"))
    code, said = finish("eval", elsewhere, "--split", "test")
    assert code == 0 and "bits per byte" in said, said
    env = json.loads((finished / "env.json").read_text())
    assert len(env["digests"]["text"]) == 64


def test_a_profiled_run_says_its_costliest_operations_and_keeps_the_trace(finished):
    lines = [line[26:] for line in (finished / "log.txt").read_text().splitlines()]
    at = next(n for n, line in enumerate(lines) if line.startswith("profile of steps 3 to 7, "))
    assert trace.files(finished / "profile")
    head, *rows = lines[at + 1 : at + 12]
    assert head.split() == "time times of the limit operation what it does line".split()
    shares = [float(row.split("%")[0]) for row in rows]
    assert len(rows) == 10 and shares == sorted(shares, reverse=True) and sum(shares) <= 100
    assert sum(bool(re.search(r"\d+% of (products|bandwidth)", row)) for row in rows) >= 3
    assert any(re.search(r" [\w/]+/\w+\.py:\d+$", row) for row in rows)
    assert "other operations" in lines[at + 12] and "GB/s" in lines[at + 13]
    # It stands between the steps that it is of and the next ones.
    assert any(line.startswith("step 5/") for line in lines[:at])
    assert any(line.startswith("step 8/") for line in lines[at:])


def test_a_memory_of_the_training_text_is_measured_beside_the_model(here, finished, tmp_path):
    memory = tmp_path / "states"
    without = measured(here, finished)
    with_memory = measured(here, finished, "--knn", memory)
    assert with_memory["bits per byte without knn"] == without["bits per byte"]
    assert with_memory["tokens"] == without["tokens"] and "chosen on valid" in with_memory["knn"]
    assert float(with_memory["bits per byte with knn"]) <= float(without["bits per byte"])
    code, said = here("eval", finished, "--knn", memory, f"data.files={tmp_path}/none")
    assert code == 2 and "--knn" in said and "of its own text" in said
