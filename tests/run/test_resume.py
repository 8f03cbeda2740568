"""A run that was killed, stopped or damaged ends as the one that never was, bit for bit."""

import json
import signal
import time
from pathlib import Path

import pytest


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


def wait_for(condition, process, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
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


def test_a_run_killed_in_training_and_in_a_save_ends_bit_equal(
    finished, config, start, finish, tmp_path
):
    folder = tmp_path / "killed"
    for condition in (at_step(folder, 27), saving(folder, 2), at_step(folder, 90)):
        process = start("train", config, "--out", folder)
        wait_for(condition, process)
        before = checkpoints(folder)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        # What was complete stays complete; at most the newest is new.
        assert set(before) - set(checkpoints(folder)) <= set(before[:-1])
    code, out, err = finish("train", config, "--out", folder)
    assert code == 0 and "resuming at step" in out + err
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert digests(folder, 120) == digests(finished, 120)
    assert losses(folder) == losses(finished)
    assert len(losses(folder)) == 120 + 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_told_to_stop_saves_exits_75_and_ends_bit_equal(
    finished, config, start, finish, tmp_path, number
):
    folder = tmp_path / "stopped"
    process = start("train", config, "--out", folder)
    wait_for(at_step(folder, 25), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "Traceback" not in out + err
    stopped = checkpoints(folder)[-1]
    assert stopped >= 24 and f"stopped at step {stopped} and saved" in out + err
    code, out, err = finish("train", folder)
    assert code == 0 and f"resuming at step {stopped} of 120" in out + err
    assert digests(folder, 120) == digests(finished, 120)
    assert losses(folder) == losses(finished)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished, finish, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    kept = checkpoints(folder)
    files = [p for p in (folder / "checkpoints" / f"{kept[-1]:08d}").rglob("*") if p.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    code, out, err = finish("train", folder)
    assert code == 0, out + err
    assert f"resuming at step {kept[-2]} of 120" in out + err
    assert "warning: " in out + err and victim.name in out + err
    assert digests(folder, 120) == digests(finished, 120)


def test_two_trainers_never_share_a_folder(config, start, finish, tmp_path):
    folder = tmp_path / "shared"
    process = start("train", config, "--out", folder, "train.steps=100000")
    try:
        wait_for(at_step(folder, 5), process)
        began = time.monotonic()
        code, _, err = finish("train", folder)
        assert code == 3 and str(process.pid) in err and "Traceback" not in err
        assert time.monotonic() - began < 30
    finally:
        process.kill()
        process.communicate()


def test_a_run_of_another_config_is_refused_and_left_alone(finished, config, finish):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    code, _, err = finish("train", config, "--out", finished, "model.layers=3", "train.batch=4")
    assert code == 2 and err.count("\n") == 1
    assert "model.layers is 2 there, 3 here" in err and "train.batch is 8 there, 4 here" in err
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert {p.name for p in after} == {p.name for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed <= {"LOCK"}


def test_a_changed_corpus_is_refused(config, corpus, finish, tmp_path):
    text = tmp_path / "own.jsonl"
    text.write_text(corpus.read_text())
    words = ("train", config, "--out", tmp_path / "run", f"data.files=[{text}]")
    short = ("train.steps=20", "train.validate_every=20")
    code, out, err = finish(*words, *short)
    assert code == 0, out + err
    text.write_text(corpus.read_text() + json.dumps({"text": "one more"}) + "\n")
    code, _, err = finish(*words, *short)
    assert code == 2 and "another data" in err


def test_a_streak_of_bad_steps_ends_with_a_post_mortem_and_keeps_the_checkpoint(
    config, finish, tmp_path
):
    folder = tmp_path / "diverged"
    code, _, err = finish(
        "train",
        config,
        "--out",
        folder,
        "train.schedule=linear",
        "train.learning_rate=1e12",
        "train.clip=null",
        "train.warmup=0",
        "checkpoint.every=1",
        "train.optimizer=lion",
    )
    assert code == 6, err
    assert "bad steps in a row" in err and "row" in err and err.strip().count("\n") < 60
    assert "Traceback" not in err
    (report,) = folder.glob("post-mortem-*.json")
    found = json.loads(report.read_text())
    assert found["rows"] and found["examples"] and str(found["step"]) in err
    assert checkpoints(folder)


def test_the_run_folder_holds_all_that_its_use_needs(finished, finish, tmp_path):
    import shutil

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
    code, out, err = finish("generate", elsewhere, "--prompt", "the ", "--max-new-tokens", 12)
    assert code == 0 and out.startswith("the ") and len(out) > 5, err
    again = finish("generate", elsewhere, "--prompt", "the ", "--max-new-tokens", 12)
    assert again[1] == out
    code, out, err = finish("eval", elsewhere, "--split", "test")
    assert code == 0 and "bits per byte" in out, err
    env = json.loads((finished / "env.json").read_text())
    assert len(env["digests"]["data"]) == 64
