"""What a run leaves to read: metrics.jsonl, log.txt, samples/, TensorBoard events, W&B."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgen import files, terminal
from jaxgen.buckets import BucketPath, Spool
from jaxgen.errors import BusyError
from jaxgen.train import display as displays
from jaxgen.train import events, wandb_run
from jaxgen.train.display import Kind, Reading

METRICS, TIMES = "metrics.jsonl", "time.jsonl"
WAITING = 10_000  # records kept while the disk stalls; later ones are dropped and counted
SETTLING_SECONDS = 5.0  # how long a save waits until the log is as far as the run
SHOWN = ("loss", "reward", "tokens_per_second", "mfu", "epsilon", "cause")  # metrics of a Reading
CLOSING_SECONDS = 10.0  # how long the end of a run waits for a stalled disk


class Log:
    """Records and shows the progress of a run; a `train.loop.MetricWriter`.

    metrics.jsonl: {"step", "kind": "train" | "valid", "seconds", metrics...} a line; a number that
    is not finite is null there and spelled in "nonfinite"; "cause" says why a step was skipped. On
    resume, lines after `resume_step` are removed, and its own validation if `validation_pending`,
    so that nothing is there twice. track: "tensorboard", "wandb" get metrics and samples as well;
    config: the settings shown at W&B. A thread does all writing: a disk that fails or stalls, or a
    lost terminal, is reported once and training goes on. What belongs in a bucket is written on
    this machine, in `folder`, and uploaded by `upload`, unless `check` raises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        resume_step: int = 0,
        validation_pending: bool = False,
        display: Kind = "auto",
        track: Collection[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.spool, self._check = None, check
        if isinstance(folder, BucketPath):
            self.spool = Spool(folder, (METRICS, TIMES, "log.txt"))
            folder = self.spool.folder
        self.folder, self.total = Path(folder), total_steps
        self.started, self.first, self.reading = time.monotonic(), None, None
        self.valid: float | None = None
        self.sampled: int | None = None
        self.warned: set[str] = set()
        self.link: str | None = None
        self.display = displays.make(display, total_steps, resume_step)
        self.scribe = _Scribe()
        self.lines, self.metrics = _Lines(folder / "log.txt"), _Lines(folder / METRICS)
        self.times = _Lines(folder / TIMES)
        self.trackers: dict[str, Any] = {}
        self.tracked: list[str] = []
        # W&B answers over a network, for which files must not wait.
        self.remote = _Scribe() if "wandb" in track else None
        self.earlier = 0.0
        try:
            with files.refusals(self.metrics.path):
                self.folder.mkdir(parents=True, exist_ok=True)
                self.earlier = trim(self.metrics.path, resume_step, validation_pending)
        except BusyError as error:
            self._warn(METRICS, error)
        if "tensorboard" in track and not events.installed():
            self.say(events.ABSENT)
        elif "tensorboard" in track:
            self._open("events", events.Events, self.folder / "events", resume_step=resume_step)
        if "wandb" in track:
            about = {"resume_step": resume_step, "config": config or {}}
            self._open("wandb", wandb_run.WandbRun, self.folder, **about)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write down and show a training step; the loop's metrics, see `train.loop.fit`."""
        now = time.monotonic()
        # The first step pays for compilation, so the pace is counted from its end.
        self.first = self.first or (now, step)
        since, begun = self.first
        pace = (now - since) / (step - begun) if step > begun else None
        self.reading = reading = Reading(
            step=step,
            total=self.total,
            valid=self.valid,
            eta=None if pace is None else pace * (self.total - step),
            skipped=int(metrics.get("skipped", 0)),
            **{name: metrics.get(name) for name in SHOWN},
        )
        self._record(step, "train", metrics)
        self.note(reading.line())
        self._show(lambda: self.display.update(reading))

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down and show a validation: loss, perplexity, bits_per_byte, tokens."""
        self.valid = metrics.get("reward", metrics.get("loss"))
        self._record(step, "valid", metrics)
        if self.reading:
            known = self.reading = replace(self.reading, valid=self.valid)
            self._show(lambda: self.display.amend(known))
        main = "reward" if "reward" in metrics else "loss"
        forms = {
            main: f"valid {main} {{:.4f}}",
            "exact": "exact {:.4f}",
            "length": "length {:.1f}",
            "perplexity": "perplexity {:.4g}",
            "bits_per_byte": "{:.4f} bits per byte",
            "accuracy": "accuracy {:.4f}",
            "margin": "margin {:.3f}",
            "kl": "kl {:.4f}",
            "log_ratio": "log ratio {:.4f}",
        }
        facts = [form.format(metrics[name]) for name, form in forms.items() if name in metrics]
        self.say("  ".join([f"step {step}/{self.total}", *facts]))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that `what` goes on, and for how long, until the block ends."""

        def tell(seconds: float) -> None:
            self._show(lambda: self.display.wait(what, seconds))

        tell(0.0)
        with terminal.ticking(tell, terminal=self.display.moves):
            yield
        known = self.reading
        if known:
            self._show(lambda: self.display.amend(known))

    def text(self, step: int, title: str, text: str) -> None:
        """Write a sample to samples/<step>.txt and show it."""
        title, text = _sound(title), _sound(text)
        self._write("samples", self._sample, step, title, text, step == self.sampled)
        self.sampled = step
        self._track("text", step, title, text)
        self._show(lambda: self.display.text(step, title, text))

    def say(self, line: str) -> None:
        """Write a line to log.txt and show it."""
        self.note(line)
        self._show(lambda: self.display.say(_sound(line)))

    def time(self, record: Mapping[str, Any]) -> None:
        """Write down where time went; a record of `goodput.Stopwatch`."""
        self._write(TIMES, self.times.write, encode(record))

    def settle(self) -> None:
        """Wait for what was handed in to be written; a stalled disk is not waited for long.

        To be called before a checkpoint: what is written of the steps before it must not be lost
        with a process that is killed after it, for nobody will make them again.
        """
        self.scribe.settle(SETTLING_SECONDS)

    def upload(self) -> None:
        """Upload what was handed in before `settle`; nothing where the folder is no bucket's."""
        if self.spool is not None:
            try:
                self._check()
                self.spool.upload()
            except (BusyError, OSError) as error:
                self.scribe.failed.put(("what belongs in the bucket", error))

    def close(self) -> None:
        """Finish writing and leave the display; a second call does nothing."""
        if self.scribe.open:
            self._track("close")
            for name, scribe in (("wandb", self.remote), ("log", self.scribe)):
                if scribe is not None and scribe.close(CLOSING_SECONDS):
                    self._warn(name, f"no answer for {CLOSING_SECONDS:.0f} s")
            self.upload()
            self._failures()
            self._show(lambda: self.display.close())

    def _record(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        seconds = round(self.earlier + time.monotonic() - self.started, 3)
        words = {name: value for name, value in metrics.items() if isinstance(value, str)}
        values = {k: float(value) for k, value in metrics.items() if k not in words}
        line = encode({"step": step, "kind": kind, "seconds": seconds, **values, **words})
        self._write(METRICS, self.metrics.write, line)
        self._track("scalars", step, kind, values)

    def note(self, line: str) -> None:
        """Write a line to log.txt alone."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write("log.txt", self.lines.write, f"{stamp}  {_sound(line)}\n".encode())

    def _sample(self, step: int, title: str, text: str, more: bool) -> None:
        path = self.folder / "samples" / f"{step}.txt"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab" if more else "wb") as file:
            file.write(f"=== {title}\n{text}\n\n".encode())

    def _open(self, name: str, make: Callable[..., Any], folder: Path, **about: Any) -> None:
        def opening() -> None:
            self.trackers[name] = make(folder, **about)

        self.tracked.append(name)
        self._write(name, opening)

    def _track(self, method: str, *arguments: Any) -> None:
        for name in self.tracked:
            self._write(name, self._to_tracker, name, method, *arguments)

    def _to_tracker(self, name: str, method: str, *arguments: Any) -> None:
        if name in self.trackers:
            getattr(self.trackers[name], method)(*arguments)

    def _write(self, name: str, action: Callable[..., None], *arguments: Any) -> None:
        scribe = self.remote if name == "wandb" and self.remote else self.scribe
        if not scribe.put(name, action, *arguments):
            self._warn(name, "the disk does not answer" if name != "wandb" else "no answer")
        self._failures()

    def _failures(self) -> None:
        for scribe in (self.scribe, self.remote):
            for name, error in scribe.failures() if scribe else ():
                self._warn(name, error)
                # A file of events may end in half a record, which nothing can follow.
                self.trackers.pop(name, None)
        if self.link is None and "wandb" in self.trackers:
            self.link = self.trackers["wandb"].url or ""
            if self.link:
                self.say(f"W&B shows the run at {self.link}")

    def _warn(self, name: str, error: object) -> None:
        if name not in self.warned:
            self.warned.add(name)
            reason = getattr(error, "strerror", None) or error
            self.say(f"warning: {name} can't be written ({reason}); training goes on")

    def _show(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError):  # the terminal has gone, or the stream is closed
            lost, self.display = self.display, displays.Off()
            with suppress(OSError, ValueError):
                lost.close()
            self.note("warning: standard output is lost; training goes on")


class Mute:
    """A `Log` that keeps and shows nothing, of a process that another one speaks for."""

    def __enter__(self) -> Mute:
        return self

    def __exit__(self, *_: object) -> None: ...
    def step(self, step: int, metrics: Mapping[str, Any]) -> None: ...
    def validation(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def waiting(self, what: str) -> AbstractContextManager:
        """Return a context without effect."""
        return nullcontext()

    def text(self, step: int, title: str, text: str) -> None: ...
    def say(self, line: str) -> None: ...
    def note(self, line: str) -> None: ...
    def time(self, record: Mapping[str, Any]) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


def encode(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of valid JSON, also where its numbers are not finite."""
    odd = {k: str(v) for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    fine = {name: None if name in odd else value for name, value in record.items()}
    if odd:
        fine["nonfinite"] = odd
    return json.dumps(fine, allow_nan=False).encode() + b"\n"


def trim(path: Path, last_step: int, validation_pending: bool = False) -> float:
    """Remove records after `last_step`, and torn lines; return the "seconds" of the last one left.

    validation_pending: remove the validation of `last_step` too. Raises OSError where the system
    refuses. A path without a regular file is left alone.
    """
    if not path.is_file():
        return 0.0
    content, kept, seconds = path.read_bytes(), [], 0.0
    for line in content.splitlines(keepends=True):
        record = decode(line)
        if record is None or record["step"] > last_step:
            continue
        if validation_pending and (record["step"], record.get("kind")) == (last_step, "valid"):
            continue
        kept.append(line)
        seconds = record.get("seconds") or seconds
    left = b"".join(kept)
    if content == left:
        return seconds
    if content.startswith(left):
        os.truncate(path, len(left))  # atomic, and needs no space on a full disk
    else:
        files.write(path, left)
    return seconds


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line of metrics.jsonl, or None if the line is torn or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None


def _sound(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair can't be written


class _Lines:
    """A file that grows by whole lines: what a failed write left behind is cut off again."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.end = path, None, 0

    def write(self, line: bytes) -> None:
        if self.file is None:
            self.file = self.path.open("ab", buffering=0)
            self.end = os.fstat(self.file.fileno()).st_size
            if self.end and self._last() != b"\n":
                line = b"\n" + line  # a killed run may have left half a line
        elif os.fstat(self.file.fileno()).st_size > self.end:
            self.file.truncate(self.end)
        if self.file.write(line) != len(line):
            raise OSError("the disk took only a part of a line")
        self.end += len(line)

    def _last(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)


class _Scribe:
    """Runs jobs one after another on a thread; nobody who hands in a job ever waits."""

    def __init__(self) -> None:
        self.jobs: queue.Queue = queue.Queue(WAITING)
        self.failed: queue.SimpleQueue = queue.SimpleQueue()
        self.open = True
        self.thread = threading.Thread(target=self._work, name="jaxgen-log", daemon=True)
        self.thread.start()

    def put(self, name: str, action: Callable[..., None], *arguments: Any) -> bool:
        """Return whether there was room for the job; after closing it is dropped quietly."""
        if not self.open:
            return True
        try:
            self.jobs.put_nowait((name, action, arguments))
        except queue.Full:
            return False
        return True

    def settle(self, seconds: float) -> None:
        """Wait until the jobs handed in before are done, at most so long."""
        done = threading.Event()
        if self.open and self.put("", done.set):
            done.wait(seconds)

    def failures(self) -> list[tuple[str, Exception]]:
        """Return (name of the job, its error) of those that failed since the last call."""
        return [self.failed.get() for _ in range(self.failed.qsize())]

    def close(self, seconds: float) -> bool:
        """Return whether jobs are still waiting after `seconds`; no more are taken."""
        self.open = False
        with suppress(queue.Full):
            self.jobs.put(None, timeout=seconds)
            self.thread.join(seconds)
        return self.thread.is_alive()

    def _work(self) -> None:
        while job := self.jobs.get():
            name, action, arguments = job
            try:
                action(*arguments)
            except Exception as error:  # the log's own faults must not stop a run either
                self.failed.put((name, error))
