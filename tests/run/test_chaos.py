"""kill -9 and SIGTERM at random moments; benchmarks/chaos.py is the long version."""

import os
import random
import signal
from pathlib import Path

import pytest


# Stops and kills at named moments are in test_resume.py, and always tested.
@pytest.mark.skipif(not os.environ.get("JAXGEN_NIGHTLY"), reason="half a minute, half an hour")
@pytest.mark.parametrize(("kills", "stops"), [(2, 1), (50, 20)])
def test_killed_and_stopped_at_random_moments_a_run_ends_bit_equal(
    kills, stops, finished, config, cache, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import chaos

    unsampled = tmp_path / "unsampled.yaml"
    unsampled.write_text(config.read_text().replace('prompts: ["the "]', "prompts: []"))
    whole = chaos.Trainer(unsampled, cache, tmp_path / "whole")
    (tmp_path / "whole").symlink_to(finished)
    found, runs = chaos.series(whole, kills, stops, random.Random(1), usual=4.0)
    names = [row["signal"] for row in found]
    assert runs >= 1 and (names.count("SIGKILL"), names.count("SIGTERM")) == (kills, stops)
    assert all(isinstance(row["saved"], bool) for row in found if row["signal"] == "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
