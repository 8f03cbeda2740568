"""A run on a mesh, gone on with on another and on one device, is the run of one device."""

import json
import os
import subprocess
import sys

import fake_devices
import forked
import numpy as np
import pytest

CONFIG = """
model: {context: 16, layers: 1, d_model: 8, heads: 2, dropout: 0.1, vocab_size: 260}
tokenizer: {kind: bytes}
data: {files: [text.txt], split: tail, valid_fraction: 0.2, test_fraction: 0.0}
train: {steps: 12, batch: 8, warmup: 2, log_every: 1, validate_every: 6, validate_batches: 2}
checkpoint: {every: 4, keep_last: 9}
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Run `jaxgen train` with so many fake devices, in one folder for all; return its output."""
    folder = tmp_path_factory.mktemp("meshes")
    rng = np.random.default_rng(0)
    words = ["the", "of", "value", "return", "list", "string", "is"]
    text = "\n\n".join(" ".join(rng.choice(words, 30)) for _ in range(60))
    (folder / "text.txt").write_text(text)
    (folder / "tiny.yaml").write_text(CONFIG)

    def run(devices, *arguments, program=("-m", "jaxgen", "train")):
        environment = (
            dict(os.environ)
            | {
                "JAXGEN_CACHE": str(folder / "cache"),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            | fake_devices.flags(devices)
        )
        return forked.program([*program, *arguments], environment, folder).end(240)

    run.folder = folder
    return run


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, 7), 6, *range(7, 13), 12]
    return [row["loss"] for row in rows]


def drop_after(folder, step):
    """Put a run back to one of its checkpoints."""
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            subprocess.run(["rm", "-r", str(path)], check=True)


def digests(folder, step):
    text = (folder / "checkpoints" / f"{step:08d}" / "manifest.json").read_text()
    return {name: row["sha256"] for name, row in json.loads(text)["arrays"].items()}


@pytest.mark.skipif(not os.environ.get("JAXGEN_NIGHTLY"), reason="half a minute: JAXGEN_NIGHTLY=1")
def test_a_run_moves_between_meshes_and_keeps_its_curve(train):
    code, said = train(1, "tiny.yaml", "--out", "one")
    assert code == 0, said
    code, said = train(8, "tiny.yaml", "--out", "many", "mesh=data:2,fsdp:2,tensor:2")
    assert code == 0 and "data 2, fsdp 2, tensor 2" in said, said
    drop_after(train.folder / "many", 8)
    saved = digests(train.folder / "many", 8)
    code, said = train(4, "many", "mesh=fsdp:2,sequence:2")
    assert code == 0 and "resuming at step 8" in said, said
    assert digests(train.folder / "many", 8) == saved
    drop_after(train.folder / "many", 8)
    code, said = train(1, "many", "mesh=data:1")
    assert code == 0 and "resuming at step 8" in said, said
    np.testing.assert_allclose(
        losses(train.folder / "many"), losses(train.folder / "one"), rtol=1e-5
    )


REFUSED = {
    "mesh.data=3": "3 devices, but there are 4; data=4 fits",
    "mesh=tensor:4 model.heads=4 model.vocab_size=261": "nearest sizes",
    "mesh=data:4 train.batch=6": "train.batch=6 is not a multiple of mesh.data=4",
    "mesh=sequence:4 model.context=18": "nearest that work: 16 or 20",
    "mesh=tensr:4": "did you mean 'tensor'",
}
# One process for all of them: most of the time is its start.
EACH = """
import sys
from jaxgen.cli import app
for words in sys.argv[1:]:
    print("code", app.main(["train", "tiny.yaml", "--out", "refused", *words.split()]), flush=True)
"""


def test_what_does_not_divide_is_refused_with_axis_size_and_remedy(train):
    program = train.folder / "each.py"
    program.write_text(EACH)
    _, said = train(4, *REFUSED, program=[str(program)])
    lines = [line for line in said.splitlines() if line.startswith("jaxgen: ")]
    assert said.count("code 2\n") == len(lines) == len(REFUSED), said
    for line, part in zip(lines, REFUSED.values(), strict=True):
        assert part in line
    assert not (train.folder / "refused" / "config.yaml").exists()
