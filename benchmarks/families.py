"""How far from transformers is what each family computes? Lines of its file, largest differences.

    python benchmarks/families.py            all families, minutes; writes results/families.json
    python benchmarks/families.py phi falcon these alone; the results of others stay

All cases and variants of the parity tests, in float32 on a CPU, with the installed transformers:
logits and hidden states, for encoders and towers their outputs and those of all layers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))

import jax.numpy as jnp
import make_golden_models
import numpy as np
import parity_cases as cases
import parity_run
import transformers

import jaxgen
from jaxgen.models import families

OTHERS = (
    *(*cases.RIGHT.items(), *cases.ENCODER_VARIANTS.items()),
    *((kind, {"unequal": given}) for kind, given in cases.UNEQUAL.items()),
)
RESULT = Path(__file__).parent / "results" / "families.json"


def decoders(family: str) -> Iterator[tuple[float, float]]:
    """Yield the largest differences of (logits, hidden states) of each case of a decoder."""
    for given in (*cases.CASES.get(family, {}).values(), *cases.VARIANTS.get(family, {}).values()):
        want = make_golden_models.outputs(family, given)
        with tempfile.TemporaryDirectory() as home:
            about = json.loads(bytes(want["about"]))
            folder = parity_run.write_folder(Path(home) / "model", about)
            logits, hidden, same_text = parity_run.differences(folder, want)
        if not same_text:
            raise SystemExit(f"{family}: greedy text differs for {given}")
        yield logits, hidden


def others(family: str) -> Iterator[tuple[float, float]]:
    """Yield the largest differences of (outputs, hidden states) of encoders, heads and towers."""
    for kind, named in OTHERS:
        for given in named.values() if kind[0] == family else ():
            want = make_golden_models.right_outputs(kind, given)
            about = json.loads(bytes(want["about"]))
            with tempfile.TemporaryDirectory() as home:
                folder = parity_run.write_folder(Path(home) / "model", about)
                config, params = jaxgen.load(folder)
            segments, memory = jnp.asarray(cases.MASK), None
            tokens, real = cases.source(about["config"]["pad_token_id"]), cases.MASK == 1
            if config.topology == "encoder_decoder":
                memory = jaxgen.encode(params, config, tokens, segments=segments)
                tokens, segments, real = cases.TARGETS, None, np.ones(cases.TARGETS.shape, bool)
            taps = ("*/out",)
            out = jaxgen.apply(params, config, tokens, segments=segments, memory=memory, taps=taps)
            logits = np.asarray(out.hidden if out.logits is None else out.logits)
            logits = logits.reshape(want["logits"].shape) - want["logits"]  # one logit, no axis
            hidden = parity_run.states(config, out) - want["hidden"][1:]
            logits = logits if config.head == "classes" else logits[real]
            yield float(np.abs(logits).max()), float(np.abs(hidden[:, real]).max())


def measured(family: str) -> dict[str, Any]:
    """Return the row of a family."""
    found = [*decoders(family), *others(family)]
    lines = len((Path(families.__file__).parent / f"{_module(family)}.py").read_text().splitlines())
    logits, hidden = (max(column) for column in zip(*found, strict=True))
    return {"lines": lines, "cases": len(found), "logits": logits, "hidden": hidden}


def _module(family: str) -> str:
    """Return the name of the file that holds a family."""
    found = [name for name, module in vars(families).items()
             if getattr(getattr(module, "FAMILY", None), "model_type", None) == family]  # fmt: skip
    return found[0]


def main() -> None:
    """Measure families and write results/families.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all, if none is named")
    known = {*cases.CASES, *cases.VARIANTS, *(kind[0] for kind, _ in OTHERS)}
    asked = parser.parse_args().families or [name for name in families.FAMILIES if name in known]
    rows: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        rows = json.loads(RESULT.read_text())["families"]
    for family in asked:
        rows[family] = measured(family)
        print(family, rows[family], flush=True)
        rows = {name: rows[name] for name in families.FAMILIES if name in rows}
        about = {"transformers": transformers.__version__, "families": rows}
        RESULT.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
