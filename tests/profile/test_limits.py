"""One ruler for profiles, plans, MFU on a CPU and the benchmarks."""

from types import SimpleNamespace

import jax
import pytest

from jaxgen.profile import limits
from jaxgen.train import flops


@pytest.mark.parametrize(
    ("measure", "amount"),
    [
        (lambda: limits.products("float32"), 2 * 64**3),
        (limits.reading, 4 * 2**14),
        (limits.bandwidth, 2 * 4 * 2**13),
    ],
)
def test_a_rate_is_what_is_done_over_the_least_seconds(measure, amount, monkeypatch):
    monkeypatch.setitem(limits.SIZES, jax.default_backend(), (64, 2**14))
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 25.0])  # calls of 9, 2 and 5 seconds
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert measure() == amount / 2


def test_the_peak_of_an_unknown_device_is_its_best_matmul_measured_once(monkeypatch):
    rates = iter([5.0])
    monkeypatch.setattr(limits, "products", lambda dtype: next(rates))
    flops._measured.cache_clear()

    class Device:
        device_kind = "another"

    try:
        assert flops.peak([Device()]) == flops.peak([Device(), Device()]) == 5.0
    finally:
        flops._measured.cache_clear()
