"""Energy from the counters that a platform has, and nothing where it has none."""

import sys
from types import SimpleNamespace

import pytest

from jaxgen.measure import energy


@pytest.fixture
def rapl(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("9000000")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
    return tmp_path


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_packages_are_summed_and_a_counter_that_came_round_is_followed(rapl, no_gpu):
    def work():
        (rapl / "intel-rapl:0" / "energy_uj").write_text("9500000")
        (rapl / "intel-rapl:0:0" / "energy_uj").write_text("9400000")
        (rapl / "intel-rapl:1" / "energy_uj").write_text("1000000\n")

    assert energy.joules(work, folder=rapl) == pytest.approx(0.5 + 2.0)


def test_gpus_count_as_well(tmp_path, monkeypatch):
    counter = {"mj": 1000}
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counter["mj"],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = energy.joules(lambda: counter.update(mj=3500), folder=tmp_path)
    assert found == pytest.approx(2.5)


def test_a_platform_that_tells_nothing_is_not_guessed(tmp_path, no_gpu):
    ran = []
    assert energy.joules(lambda: ran.append(1), folder=tmp_path) is None
    assert not ran  # there is nothing to measure, so nothing is run for it
