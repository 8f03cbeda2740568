"""The knobs of the `checkpoint` section."""

import pytest

from jaxgen import settings
from jaxgen.errors import ConfigError
from jaxgen.store import CheckpointSettings


@pytest.mark.parametrize("name, value", [("every", 0), ("keep_last", 0), ("keep_best", -1)])
def test_a_count_that_keeps_nothing_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"checkpoint: {name}={value} must be at least"):
        settings.build(CheckpointSettings, {name: value}, "checkpoint")


def test_every_knob_is_documented_and_has_a_default():
    rows = settings.fields_help(CheckpointSettings)
    assert [row[0] for row in rows] == ["every", "keep_last", "keep_best", "verify"]
    assert all(help_text for *_, help_text in rows)
    assert settings.build(CheckpointSettings, {}) == CheckpointSettings()
