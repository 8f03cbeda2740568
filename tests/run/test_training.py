"""What a run hands to the loop, and says before it begins."""

import jax
import pytest

from jaxgen.errors import ConfigError
from jaxgen.run import training
from jaxgen.train import forms, loop


@pytest.mark.parametrize("small", [0, 2**20])
def test_a_run_says_the_compilers_options_and_waits_for_steps_on_a_cpu(
    small, config, here, monkeypatch, tmp_path
):
    handed = []

    def fit(state, batches, step, settings, duties, *_, **__):
        handed.append(duties)
        raise ConfigError("enough seen")

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(loop, "SMALL", small)
    code, said = here("train", config, "--out", tmp_path / "run")
    assert code == 2 and "enough seen" in said
    assert handed[0].ahead == (small > 0 or jax.default_backend() != "cpu")
    for name in forms.asked("jit", None):
        assert f"compiler option {name}=true" in said
