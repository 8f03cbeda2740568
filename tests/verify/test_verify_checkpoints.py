"""`verify checkpoints`: every step of a run is listed, and a changed byte of any is found."""

import shutil

import jax.numpy as jnp
import pytest

from jaxgen.cli import app
from jaxgen.cli import start as cli_start
from jaxgen.store import Checkpoints, manifest

TREES = {step: {"params": {"w": jnp.full((64, 8), float(step))}} for step in (2, 4, 6)}


def store(folder):
    return Checkpoints(folder / "checkpoints", keep_last=9, keep_best=1, fingerprints={"data": "x"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "kept"
    folder.mkdir()
    (folder / "config.yaml").write_text("tokenizer: {kind: bytes}\n")
    kept = store(folder)
    for step, metric in ((2, 3.5), (4, 2.25), (6, None)):
        kept.save(step, TREES[step], {}, metric=metric)
    kept.wait()
    return folder


@pytest.fixture
def verify(run, tmp_path, monkeypatch, capsys):
    """Return (exit code, rows, error) of the verb on a copy of the run, changed by `damage`."""
    monkeypatch.setattr(cli_start, "prepare_jax", lambda cache: None)

    def go(damage=lambda folder: None):
        folder = tmp_path / "copy"
        shutil.copytree(run, folder)
        damage(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        code = app.main(["verify", "checkpoints", str(folder)])
        said = capsys.readouterr()
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert before == after
        return code, said.out.splitlines(), said.err

    return go


def steps(rows):
    cells = [(row.split()[0], row.rsplit("  ", 1)[-1]) for row in rows]
    return {int(step): state for step, state in cells if step.isdigit()}


def test_sound_steps_are_listed_with_what_the_manifest_says_and_the_best_is_marked(run, verify):
    code, rows, error = verify()
    assert code == 0 and not error
    assert steps(rows) == {2: "sound", 4: "sound, the best", 6: "sound"}
    about = store(run).about(4)
    saved = about.time[:19].split("T")
    assert rows[2].split()[1:5] == [*saved, f"{about.nbytes / 2**20:.1f}", "2.2500"]
    assert rows[3].split()[4] == "-"


def test_a_changed_byte_in_any_file_of_any_step_is_found_and_named(run, verify, tmp_path):
    found = [p.relative_to(run) for p in sorted((run / "checkpoints").rglob("*")) if p.is_file()]
    assert len(found) >= 9
    for name in found:

        def change(folder, name=name):
            raw = bytearray((folder / name).read_bytes())
            raw[len(raw) // 2] ^= 4
            (folder / name).write_bytes(raw)

        code, rows, error = verify(change)
        step = int(name.parts[1])
        assert code == 1 and str(name) in error and error.count("\n") == 1
        assert [s for s, state in steps(rows).items() if state == "unsound"] == [step]
        shutil.rmtree(tmp_path / "copy")


def test_an_array_that_differs_from_its_own_sum_is_found_though_its_files_agree(run, verify):
    def exchange(folder):
        path = folder / "checkpoints" / "00000006"
        shutil.rmtree(path / "arrays")
        shutil.copytree(path.parent / "00000004" / "arrays", path / "arrays")
        record = manifest.read_manifest(path)
        content = manifest.inventory(path)
        content.pop(manifest.NAME)
        manifest.write_manifest(path, manifest.Manifest(**vars(record) | {"files": content}))

    code, _, error = verify(exchange)
    assert code == 1 and "array params/w has been changed" in error


def test_what_is_unfinished_is_named_and_no_damage(verify):
    code, rows, _ = verify(lambda folder: (folder / "checkpoints" / ".tmp-00000008-a").mkdir())
    assert code == 0 and rows[-1].startswith(".tmp-00000008-a is") and "interrupted" in rows[-1]


def test_with_no_sound_step_left_it_says_so(verify):
    def empty(folder):
        for path in (folder / "checkpoints").rglob("manifest.json"):
            path.write_text("{}")

    code, rows, error = verify(empty)
    assert code == 1 and "put back a copy" in error and set(steps(rows)) == {2, 4, 6}


@pytest.mark.parametrize(
    ("damage", "code", "part"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), 2, "is no run"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), 4, "holds no checkpoint"),
    ],
)
def test_without_a_run_or_a_checkpoint_it_is_one_line_of_error(verify, damage, code, part):
    found, rows, error = verify(damage)
    assert found == code and not rows and part in error and error.count("\n") == 1
