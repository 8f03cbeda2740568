"""Does a run that is killed or stopped at random moments end as the one that never was?

    python benchmarks/chaos.py                       # 50 x kill -9, 20 x SIGTERM
    python benchmarks/chaos.py --kills 3 --stops 2 --output found.json
    python benchmarks/chaos.py --unattended 50       # kill -9, and nobody starts it again
    python benchmarks/chaos.py --private --stops 0   # the same of a private run: noise, epsilon

A tiny run is trained again and again, each time until all of it is done. Between, its process gets
kill -9 or SIGTERM at a moment drawn at random: at any time, or while it prepares data, trains, or
saves. After each, every checkpoint on disk must be sound and none that was complete may be gone
but to a newer one; the next start must go on from the newest (or begin, where there is none); and
at the end all arrays of the final state, all losses and validations must be those of an
uninterrupted run, bit for bit. The first that is not ends the program with 1.

With --unattended nobody starts the runs again: `train --restarts` does, and the shares of the time
that each says it took (`jaxgen.train.goodput`) must add up to the clock's within 1 %.

Processes are forked from one that has imported JAX already, and compiled programs are kept, so a
start costs little. Writes benchmarks/results/chaos.json, or what --output names.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import sides

STEPS = 120
CONFIG = f"""
model: {{context: 16, layers: 1, d_model: 8, heads: 2, dropout: 0.1}}
tokenizer: {{kind: bytes}}
data: {{files: [text.jsonl]}}
train: {{steps: {STEPS}, batch: 8, warmup: 5, log_every: 1, validate_every: 30,
  validate_batches: 4}}
checkpoint: {{every: 10}}
"""
PRIVACY = "privacy: {noise_multiplier: 4.0, delta: 1.0e-4, expected: 2.0, seed: 7}"
WORDS = "the of a to in is it return value list string object number function class if".split()
PRELOADED = ["jaxgen.run.training", "jaxgen.cli.app", "orbax.checkpoint", "grain", "rich.progress"]
START = 8.0  # seconds, at most, that a process takes until it trains
GRACE = 30.0  # seconds a scheduler usually grants between SIGTERM and kill -9


def child(words: list[str], output: str, environment: dict[str, str]) -> None:
    """Run the command line in this forked process."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    import jax

    # After a fork: JAX read its environment when it was imported.
    jax.config.update("jax_compilation_cache_dir", os.path.join(environment["JAXGEN_CACHE"], "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    from jaxgen.cli import app

    try:
        code = app.main(words)
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Trainer:
    """The run folder of one series of interruptions, and the process that trains in it.

    config: a file that trains for STEPS steps; cache: of prepared data and compiled programs.
    """

    def __init__(self, config: Path, cache: Path, folder: Path) -> None:
        self.config, self.cache, self.folder = config, cache, folder
        self.output = folder.with_suffix(".txt")
        self.process = None
        self.leftovers: set[Path] = set()

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        words = ["train", str(self.config), "--out", str(self.folder)]
        # What is shown is shown for the program as users run it: without flags.
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {"JAXGEN_CACHE": str(self.cache), "JAX_PLATFORMS": "cpu"}
        self.output.write_bytes(b"")
        self.leftovers = self.drafts()
        given = (words, str(self.output), environment)
        self.process = context.Process(target=child, args=given)
        self.process.start()

    def end(self, number: int | None = None) -> int:
        """Send a signal if one is given, and return the exit code."""
        if number is not None and self.process.exitcode is None:
            os.kill(self.process.pid, number)
        self.process.join(300)
        assert self.process.exitcode is not None, f"it hangs: {self.said()}"
        return self.process.exitcode

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def steps(self) -> list[int]:
        return steps_of(self.folder)

    def step(self) -> int:
        """The last step that is written down."""
        rows = records(self.folder)
        return rows[-1]["step"] if rows else 0

    def drafts(self) -> set[Path]:
        """What is unfinished, in the cache of prepared data and among the checkpoints."""
        folders = self.cache / "data", self.folder / "checkpoints"
        return {path for folder in folders for path in folder.glob(".tmp-*")}

    def preparing(self) -> bool:
        return any(path.parent.name == "data" for path in self.drafts() - self.leftovers)

    def saving(self) -> bool:
        return any(path.parent.name != "data" for path in self.drafts() - self.leftovers)


def steps_of(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*"))


def newest(folder: Path) -> int:
    return max(steps_of(folder), default=0)


def records(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def digests(folder: Path, step: int) -> dict[str, str]:
    manifest = json.loads((folder / "checkpoints" / f"{step:08d}" / "manifest.json").read_text())
    return {name: row["sha256"] for name, row in manifest["arrays"].items()}


def curve(folder: Path) -> list[tuple]:
    names = ("step", "kind", "loss", "grad_norm", "learning_rate", "bits_per_byte", "epsilon")
    return [tuple(row.get(name) for name in names) for row in records(folder)]


def damaged(trainer: Trainer) -> list[str]:
    """Whatever is wrong with any checkpoint of the run."""
    from jaxgen.store import Checkpoints

    store = Checkpoints(trainer.folder / "checkpoints", keep_last=2, keep_best=1, fingerprints={})
    return [problem for step in trainer.steps() for problem in store.verify(step)]


def wait(trainer: Trainer, place: str, chance: random.Random, usual: float) -> str:
    """Wait for a random moment of this kind; return where the process then is, to all appearance.

    usual: seconds that an undisturbed start-to-end takes. The process may end before.
    """
    begun, first = time.monotonic(), trainer.step()
    target = chance.randint(first + 1, max(first + 1, STEPS - 1))
    delay = chance.uniform(0.0, usual)
    ready = {
        "any time": lambda: time.monotonic() - begun > delay,
        "preparing data": trainer.preparing,
        "training": lambda: trainer.step() >= target,
        "saving": trainer.saving,
    }[place]
    while trainer.process.exitcode is None and not ready():
        time.sleep(0.001)
    if place != "any time":
        time.sleep(chance.uniform(0.0, 0.03))
    if trainer.preparing():
        return "preparing data"
    if trainer.saving():
        return "saving"
    return "training" if trainer.step() > first else "starting"


def check_start(trainer: Trainer, newest: int | None) -> None:
    """The process began where it had to: at the newest checkpoint, or from the beginning."""
    said = trainer.said()
    if "compiling the training step" in said or "resuming" in said:
        resumed = f"resuming at step {newest} of {STEPS}"
        assert (resumed in said) if newest is not None else ("resuming" not in said), said
        assert "warning" not in said, said


def interrupt(trainer: Trainer, number: int, place: str, chance, usual: float) -> dict | None:
    """One process from its start to its interruption; None if it was done, or not up, before."""
    before = trainer.steps()
    if place == "preparing data":
        for shard in (trainer.cache / "data").glob("[0-9a-f]*"):
            if shard.is_dir():  # beside digests.json
                shutil.rmtree(shard)
    trainer.start()
    where = wait(trainer, place, chance, usual)
    complete = trainer.steps()
    told = time.monotonic()
    code = trainer.end(number)
    seconds = time.monotonic() - told
    after = trainer.steps()
    assert "Traceback" not in trainer.said(), trainer.said()
    assert damaged(trainer) == [], damaged(trainer)
    # What was complete is there, or a newer one is.
    assert not complete or after[-1] >= complete[-1], (complete, after)
    check_start(trainer, before[-1] if before else None)
    if code == 0 or (number == signal.SIGTERM and code == -number):
        return None
    found = {"where": where, "step": after[-1] if after else None, "seconds": round(seconds, 2)}
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL, (code, trainer.said())
        return found
    assert code == 75 and seconds < GRACE, (code, seconds, trainer.said())
    saved = f"stopped at step {after[-1] if after else None} and saved" in trainer.said()
    assert saved or "stopped with nothing left to save" in trainer.said(), trainer.said()
    # Nothing is left to save before the first step of this process, and after the run's last.
    began = after == before and not re.search(r"^step \d", trainer.said(), re.M)
    assert saved or began or after[-1] == STEPS, trainer.said()
    return found | {"saved": saved}


def undisturbed(trainer: Trainer) -> float:
    """Train to the end and return the seconds it took."""
    begun = time.monotonic()
    trainer.start()
    assert trainer.end() == 0, trainer.said()
    return time.monotonic() - begun


def series(
    whole: Trainer, kills: int, stops: int, chance: random.Random, usual: float
) -> tuple[list[dict], int]:
    """Interrupt runs so many times; return the interruptions, and how many runs they were of.

    whole: trained to its end already; usual: seconds that takes when everything is compiled.
    """
    expected = digests(whole.folder, STEPS), curve(whole.folder)
    left = Counter({signal.SIGKILL: kills, signal.SIGTERM: stops})
    found, runs = [], 0
    while left.total():
        trainer = Trainer(whole.config, whole.cache, whole.folder.with_name(f"run-{runs}"))
        while left.total() and (trainer.process is None or trainer.process.exitcode != 0):
            number = chance.choice(list(left.elements()))
            place = chance.choice(["any time", "preparing data", "training", "saving"])
            done = interrupt(trainer, number, place, chance, usual)
            if done is not None:
                found.append({"signal": signal.Signals(number).name} | done)
                left[number] -= 1
                print(f"{len(found)}: {found[-1]}", flush=True)
        newest = trainer.steps()[-1] if trainer.steps() else None
        undisturbed(trainer)
        check_start(trainer, newest)
        state, lines = digests(trainer.folder, STEPS), curve(trainer.folder)
        assert state == expected[0], [name for name in state if state[name] != expected[0][name]]
        missing = [line for line in expected[1] if line not in lines]
        assert lines == expected[1], f"missing or misplaced: {missing}; {len(lines)} lines"
        assert not list(trainer.folder.rglob(".tmp-*"))
        runs += 1
        print(f"run {runs}: ends bit-equal", flush=True)
    return found, runs


def unattended(whole: Trainer, kills: int, chance: random.Random, usual: float) -> list[dict]:
    """Kill the process that trains, again and again, below runs with --restarts; return the runs.

    usual: seconds that a run takes undisturbed, in a process that has imported JAX already.
    """
    from jaxgen.train import goodput

    expected, found = (digests(whole.folder, STEPS), curve(whole.folder)), []
    while (left := kills - sum(row["kills"] for row in found)) > 0:
        folder = whole.folder.with_name(f"unattended-{len(found)}")
        words = ["train", str(whole.config), "--out", str(folder), f"--restarts={left}"]
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "JAXGEN_CACHE": str(whole.cache),
            "JAX_COMPILATION_CACHE_DIR": str(whole.cache / "xla"),
        }
        output = folder.with_suffix(".txt")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxgen", *words],
                env=environment, stdout=file, stderr=file,
            )  # fmt: skip
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        killed: set[int] = set()
        while process.poll() is None and len(killed) < left:
            news = set(map(int, children.read_text().split())) - killed
            for child in news:
                begun, delay = newest(folder), chance.uniform(0.0, START)
                if chance.random() < 0.5:  # while it trains, else at any time
                    while process.poll() is None and newest(folder) == begun:
                        time.sleep(0.001)
                    delay = chance.uniform(0.0, usual / 2)
                time.sleep(delay)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                    killed.add(child)
            time.sleep(0.02)
        assert process.wait(600) == 0, output.read_text()
        said = output.read_text()
        assert (digests(folder, STEPS), curve(folder)) == expected, said
        times = goodput.read_times(folder)
        # A process that is killed once its run has ended leaves a pause that is nobody's.
        pauses = [b["clock"] - a["clock"] for a, b in pairwise(times) if "end" in a]
        spent, wall = goodput.spent(times), times[-1]["clock"] - times[0]["clock"] - sum(pauses)
        assert abs(sum(spent.values()) / wall - 1) < 0.01, (spent, wall, times)
        shares = {name: round(seconds / wall, 4) for name, seconds in spent.items()}
        found.append({"kills": said.count("(SIGKILL)"), "seconds": round(wall, 1), **shares})
        print(f"{sum(row['kills'] for row in found)} kills: {found[-1]}", flush=True)
    return found


def summary(found: list[dict], runs: int) -> dict:
    kills = [row for row in found if row["signal"] == "SIGKILL"]
    stops = [row for row in found if row["signal"] == "SIGTERM"]
    saved = [row for row in stops if row["saved"]]
    return {
        "kill -9": {"moments": len(kills), "where": Counter(row["where"] for row in kills)},
        "SIGTERM": {
            "moments": len(stops),
            "where": Counter(row["where"] for row in stops),
            "saved a complete checkpoint": len(saved),
            "nothing left to save: before the first step, or after the last": len(stops)
            - len(saved),
            "longest seconds to the end": max((row["seconds"] for row in stops), default=None),
        },
        "runs brought to their end, all bit-equal": runs,
        "checkpoints damaged or lost": 0,  # the first would have ended this program
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--unattended", type=int, help="kills of runs with --restarts, alone")
    parser.add_argument("--private", action="store_true", help="of a private run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/chaos.json")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 40))) for _ in range(400)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (home / "text.jsonl").write_text(lines)
        config = CONFIG.replace("text.jsonl", str(home / "text.jsonl"))
        if asked.private:
            config = config.replace("validate_batches: 4}", f"validate_batches: 4, {PRIVACY}}}")
            assert PRIVACY in config
        (home / "tiny.yaml").write_text(config)
        whole = Trainer(home / "tiny.yaml", home / "cache", home / "whole")
        undisturbed(whole)  # compiles
        again = Trainer(home / "tiny.yaml", home / "cache", home / "again")
        usual = undisturbed(again)
        assert digests(again.folder, STEPS) == digests(whole.folder, STEPS)
        if asked.unattended:
            rows = unattended(whole, asked.unattended, chance, usual)
            kills = sum(row["kills"] for row in rows)
            print(f"{kills} kills, {len(rows)} runs: all end bit-equal, unattended")
            sides.write("unattended", {"runs": rows, "environment": sides.environment()})
            return
        found, runs = series(whole, asked.kills, asked.stops, chance, usual)

    words = f"python benchmarks/chaos.py --seed {asked.seed}{' --private' * asked.private}"
    about = {"command": words} | summary(found, runs)
    about |= {"each": found, "environment": sides.environment()}
    asked.output.write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(summary(found, runs), indent=2))


if __name__ == "__main__":
    main()
