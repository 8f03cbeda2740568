"""A folder of checkpoints: saved in the background, complete or absent, verified when read.

    checkpoints/
      00000200/manifest.json    sizes and sha256 of every file and every array; written last
      00000200/arrays/          the arrays, by Orbax; or, of several processes or in a bucket,
      00000200/pieces/          one file a process
      .tmp-...                  unfinished or half deleted; `clean` removes it

In a bucket nothing is renamed: a step is there once its manifest is.

The list of steps is always read from the disk, where other processes may change it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import numpy as np

from jaxgen import files
from jaxgen import tree as trees
from jaxgen.errors import CheckpointError
from jaxgen.mesh.group import ALONE, Group
from jaxgen.store import arrays as orbax
from jaxgen.store import directory, disk_space, manifest, multihost, pytree_io, shards
from jaxgen.store.best import Best
from jaxgen.store.manifest import DamageError, Manifest

ARRAYS = "arrays"
PART = 1 << 30  # bytes


@dataclass(frozen=True)
class Restored:
    """A checkpoint as it was saved; `warnings` names the damaged ones skipped."""

    step: int
    tree: Any
    extra: dict[str, Any]
    warnings: list[str]


class Checkpoints:
    """The checkpoints of one run, in one folder, which the first `save` makes.

    keep_last, keep_best: how many of the newest, and of those with the lowest metric, survive a
    save. fingerprints: of the config, tokenizer, data...; kept with each checkpoint, and those
    given here must agree when one is read. verify: "full" compares every byte with its sha256,
    "off" names and sizes only. failpoint: called with the name of each stage of a save, for tests.
    One run at a time may write (`RunLock`); others may read meanwhile. group: the processes of that
    run, which then call every method together; the folder is one that all of them see. before:
    called before a manifest is written, and raises if this is no more the run that may write.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep_last: int,
        keep_best: int,
        fingerprints: Mapping[str, str],
        verify: Literal["full", "off"] = "full",
        failpoint: Callable[[str], object] = lambda stage: None,
        group: Group = ALONE,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = files.to_path(folder)
        self.keep_last, self.keep_best = keep_last, keep_best
        self.fingerprints, self.verification = dict(fingerprints), verify
        self._failpoint, self._group, self._before = failpoint, group, before
        # By Orbax, which renames, where it can.
        self._whole = group.store is None and not files.in_bucket(self.folder)
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._damaged: set[int] = set()
        self._best = Best(self.folder, keep_best, group)

    def save(self, step: int, tree: Any, extra: Mapping[str, Any], *, metric: float | None) -> None:
        """Copy the tree to the host and write it in the background; the tree may be donated.

        extra: plain data that JSON can hold. metric: lower is better; None or NaN: never the best.
        Waits for the previous save. An existing step with the same arrays is left unchanged.
        Raises CheckpointError if the disk has too little room or the folder holds later steps,
        BusyError if it can't be written; `poll` and `wait` raise errors of the background.
        """
        self.wait()
        to_host = partial(shards.to_host, first=self._group.first)
        described, arrays = (pytree_io.to_host if self._whole else to_host)(tree)
        metric = manifest.finite(metric)
        draft = Manifest(
            step=step,
            metric=metric,
            fingerprints=self.fingerprints,
            extra=manifest.plain(extra),
            arrays={
                name: {"dtype": leaf.dtype, "shape": list(leaf.shape)}
                | ({"key": leaf.key} if leaf.key else {})
                for name, leaf in described.items()
            },
            files={},
            format=1 if self._whole else 2,
            versions=manifest.versions(),
            time=manifest.now(),
        )
        self._group.on_primary("save: room", partial(self._make_room, step, described))
        self._best.add(metric)
        self._begin(partial(self._save, draft, arrays))

    def add_metric(self, step: int, metric: float | None, extra: Mapping[str, Any]) -> None:
        """Add the metric and a new extra to a saved step without one, once it is on disk.

        Returns at once; errors come by `poll` and `wait`. None or NaN changes nothing.
        """
        metric, extra = manifest.finite(metric), manifest.plain(extra)
        if metric is None:
            return
        self._best.add(metric)
        before, self._thread = self._thread, None

        def add() -> None:
            if before is not None:
                before.join()
            if self._error is None:
                self._group.on_primary("save: metric", partial(self._add, step, metric, extra))

        self._begin(add)

    def is_best(self, metric: float) -> bool:
        """Return whether a step of this metric would be kept for it: one of `keep_best`."""
        return self._best.is_best(metric)

    def _begin(self, work: Callable[[], None]) -> None:
        self._thread = Thread(target=self._background, args=(work,), name="jaxgen-save")
        self._thread.start()

    def _make_room(self, step: int, described: Mapping[str, pytree_io.Leaf]) -> None:
        with files.refusals(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        here = directory.list_steps(self.folder)
        later = [other for other in here if other > step and other not in self._damaged]
        if later:
            raise CheckpointError(
                f"{self.folder} holds step {later[-1]}, later than {step}: resume from that one, "
                "or move the later steps away"
            )
        disk_space.check(self.folder, step, sum(leaf.nbytes for leaf in described.values()))

    def poll(self) -> None:
        """Raise an error of the background, once; never waits.

        Of several processes none raises it here, before the others: see `failed`.
        """
        if self._group.store is None and self._thread is not None and not self._thread.is_alive():
            self.wait()

    def failed(self) -> bool:
        """Return whether the background save has failed; `wait` then raises its error."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until the last save is on disk; raise its error, once.

        CheckpointError for a full disk, BusyError where the system refuses. To be called before
        the program ends: a save that is still running then is given up (and leaves no trace).
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def steps(self) -> list[int]:
        """Return the steps on disk, sound or damaged, in order; BusyError if it is no folder."""
        numbers: list[int] = []
        list_steps = partial(directory.list_steps, self.folder)
        self._group.on_primary("steps", lambda: numbers.extend(list_steps()))
        return json.loads(self._group.sync("steps seen", decide=lambda _: json.dumps(numbers)))

    def best(self) -> int | None:
        """Return the step with the lowest metric (the newest of equals), None if none has one."""
        ranked = directory.rank_by_metric(self.folder, self.steps())
        return ranked[0] if ranked else None

    def restore(self, abstract_tree: Any, step: int | None = None) -> Restored | None:
        """Return the newest sound checkpoint, or a certain one, as a tree like `abstract_tree`.

        Arrays take the sharding of the abstract leaf if it has one, else the default device; they
        own their memory. None if the folder holds no step at all and none was asked for. Raises
        CheckpointError if no step is sound (or the one asked for is not), was written by a newer
        jaxgen, or has other leaves than the abstract tree; ConfigError if a fingerprint differs.
        The folder is not changed.
        """
        if step is None and not self.steps():
            return None
        leaves = pytree_io.named_leaves(abstract_tree)

        def load(record: Manifest) -> Any:
            wrong = pytree_io.mismatches(leaves, record.leaves)
            if wrong:
                raise CheckpointError(f"{self._path(record.step)} doesn't fit: {_some(wrong)}")
            if self._group.store is None:
                return self._load(record, record.leaves)
            return shards.place_shards(abstract_tree, self._regions(record))

        record, arrays, notes = self._newest_sound(step, load)
        # Whole arrays are placed one by one, once it is clear that they are sound.
        tree = pytree_io.rebuild(abstract_tree, arrays) if self._group.store is None else arrays
        return Restored(record.step, tree, record.extra, notes)

    def read(self, step: int | None = None) -> dict[str, Any]:
        """Return {"step": int, "params": nested dict of jax arrays} without knowing their shapes.

        Of the newest sound checkpoint, or a certain one; warns (UserWarning) of damaged ones that
        are passed over. Raises as `restore` does, and CheckpointError if there is no step.
        """

        def load(record: Manifest) -> dict[str, np.ndarray]:
            stored = pytree_io.stored_params(record.leaves)
            if not stored:
                raise CheckpointError(f"{self._path(record.step)} has no params; it is no model")
            arrays = self._load(record, {n: record.leaves[n] for n in stored.values()})
            return {name: arrays[where] for name, where in stored.items()}

        record, arrays, notes = self._newest_sound(step, load)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        flat = {n: pytree_io.place_on_default(n, arrays[n], record.leaves[n]) for n in arrays}
        return {"step": record.step} | trees.unflatten(flat)

    def verify(self, step: int) -> list[str]:
        """Return the problems of a step, naming files or arrays; [] if sound.

        Always compares every byte, with about PART bytes of arrays in memory at once. Raises
        CheckpointError if there is no such step, or it was written by a newer jaxgen.
        """
        if step not in self.steps():
            raise self._no_such(step)
        try:
            record = directory.read_record(self.folder, step)
            problems = manifest.damages(self._path(step), record, verify="full")
            if not problems:
                for part in pytree_io.batches(record.leaves, PART):
                    self._load(record, part, check=True)
        except DamageError as error:
            return [str(error)]
        return problems

    def about(self, step: int) -> Manifest | None:
        """Return a step's manifest, None if that is damaged.

        Raises CheckpointError if it was written by a newer jaxgen.
        """
        try:
            return directory.read_record(self.folder, step)
        except DamageError:
            return None

    def clean(self) -> list[str]:
        """Remove the leftovers of interrupted saves and deletions, and return their names.

        To be called by the owner of the run's lock. Raises BusyError where the system refuses.
        """
        if self._thread is not None:
            self._thread.join()  # what it is writing is no leftover
        leftovers: list[str] = []
        remove = partial(directory.remove_leftovers, self.folder)
        self._group.on_primary("clean", lambda: leftovers.extend(remove()))
        return leftovers

    def _path(self, step: int) -> Path:
        return directory.step_path(self.folder, step)

    def _newest_sound(
        self, step: int | None, load: Callable[[Manifest], Any]
    ) -> tuple[Manifest, Any, list[str]]:
        present = self.steps()
        if step is not None and step not in present:
            raise self._no_such(step)
        if not present:
            raise CheckpointError(f"{self.folder} holds no checkpoint; train first")
        notes: dict[int, str] = {}
        for candidate in reversed(present) if step is None else [step]:
            try:
                opened = partial(self._opened, candidate, load)
                record, arrays = multihost.load_sound(self._group, opened)
            except DamageError as error:
                notes[candidate] = str(error)
                continue
            self._damaged |= notes.keys()
            back = f"going back to step {candidate}"
            messages = [
                f"checkpoint {other} is damaged: {why}; {back}" for other, why in notes.items()
            ]
            return record, arrays, messages
        if step is None and self.steps() != present:
            return self._newest_sound(step, load)  # another process has deleted what we read
        reasons = "; ".join(f"{other}: {why}" for other, why in notes.items())
        raise CheckpointError(
            f"{self.folder}: no sound checkpoint ({reasons}); put back a copy, or begin a new run"
            if step is None
            else f"checkpoint {step} is damaged: {notes[step]}; give another of {present}"
        )

    def _opened(self, step: int, load: Callable[[Manifest], Any]) -> tuple[Manifest, Any]:
        """Return a step's manifest and what `load` makes of it; DamageError if it is not sound."""
        record = directory.read_record(self.folder, step)
        manifest.refuse_others(self._path(step), record, self.fingerprints)
        share = (self._group.index, self._group.count)
        problems = manifest.damages(self._path(step), record, verify=self.verification, share=share)
        if problems:
            raise DamageError(_some(problems))
        return record, load(record)

    def _regions(self, record: Manifest) -> Callable[[str, tuple[slice, ...]], np.ndarray]:
        """Return the function that reads a slice of an array."""
        if record.format > 1:
            check = self.verification == "full"
            reader = shards.ShardReader(self._path(record.step), record.leaves, check=check)
            return reader.read_region
        loaded = self._load(record, record.leaves)
        return lambda name, index: loaded[name][index]

    def _load(
        self, record: Manifest, chosen: Mapping[str, pytree_io.Leaf], *, check: bool | None = None
    ) -> dict[str, np.ndarray]:
        """Return the chosen arrays, compared with their digests; DamageError names the first."""
        check = self.verification == "full" if check is None else check
        if record.format > 1:
            parts = shards.ShardReader(self._path(record.step), record.leaves, check=check)
            return {name: parts.read_array(name) for name in chosen}
        sums = {name: row["sha256"] for name, row in record.arrays.items()} if check else {}
        return orbax.read_sound(self._path(record.step) / ARRAYS, chosen, sums)

    def _no_such(self, step: int) -> CheckpointError:
        there = ", ".join(map(str, self.steps())) or "none"
        return CheckpointError(f"{self.folder} holds no step {step}; it holds {there}")

    def _background(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def _save(self, draft: Manifest, arrays: dict[str, np.ndarray]) -> None:
        if self._whole:
            self._write(draft, arrays)
            self._retire()
        else:
            target = self._path(draft.step)
            replaced = draft.step in self._damaged
            more: Any = {"replaced": replaced, "before": self._before}
            multihost.write_step(self._group, target, draft, arrays, **more)
            self._group.on_primary("save: retire", self._retire)
        self._damaged.clear()

    def _add(self, step: int, metric: float, extra: dict[str, Any]) -> None:
        self._before()
        directory.add_metric(self.folder, step, metric, extra)
        self._retire()

    def _write(self, draft: Manifest, arrays: dict[str, np.ndarray]) -> None:
        rows = {
            name: {**draft.arrays[name], "sha256": pytree_io.digest(array)}
            for name, array in arrays.items()
        }
        if draft.step in directory.list_steps(self.folder) and draft.step not in self._damaged:
            if not self.verify(draft.step):
                if directory.read_record(self.folder, draft.step).arrays != rows:
                    raise CheckpointError(
                        f"{self._path(draft.step)} exists already with other arrays; move it away"
                    )
                return
            self._damaged.add(draft.step)
        self._failpoint("begin")
        try:
            with files.new_folder(self._path(draft.step)) as folder:
                orbax.write_arrays(folder / ARRAYS, arrays)
                self._failpoint("arrays")
                orbax.check(folder / ARRAYS, draft.leaves)
                content = manifest.inventory(folder)
                self._before()
                manifest.write_manifest(folder, replace(draft, arrays=rows, files=content))
                self._failpoint("manifest")
                if draft.step in self._damaged:
                    directory.remove_step(self.folder, draft.step, self._failpoint)
        except Exception as error:
            size = sum(array.nbytes for array in arrays.values())
            raise disk_space.explain(self.folder, draft.step, size, error) from error
        self._damaged.discard(draft.step)
        self._failpoint("renamed")

    def _retire(self) -> None:
        """Delete all but the newest and the best, and the steps that `restore` found damaged."""
        sound = [step for step in directory.list_steps(self.folder) if step not in self._damaged]
        best = directory.rank_by_metric(self.folder, sound)[: self.keep_best]
        directory.keep_only(self.folder, {*sound[-self.keep_last :], *best}, self._failpoint)


def _some(problems: list[str]) -> str:
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
