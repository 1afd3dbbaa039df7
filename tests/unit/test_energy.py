"""Energy is labelled by how it was had, and never harms the stage that it accompanies."""

import json
import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tasks.evaluation import energy as e
from tests.conftest import pace


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))


def figures(cpu: float, ram: float, gpu: float) -> SimpleNamespace:
    return SimpleNamespace(cpu_energy=cpu, ram_energy=ram, gpu_energy=gpu)


@pytest.mark.parametrize(
    ("modes", "device", "expected"),
    [
        (["ram", "cpu_load"], "cpu", (3.0, "estimated")),
        (["ram", "constant"], "cpu", (3.0, "estimated")),
        (["ram", "intel_rapl"], "cpu", (1.0, "rapl")),
        (["ram", "intel_rapl", "gpu"], "cpu", (1.0, "rapl")),
        (["ram", "cpu_load", "gpu"], "cpu", (3.0, "estimated")),
        (["ram", "cpu_load", "gpu"], "cuda", (4.0, "nvml")),
        (["ram", "intel_rapl", "gpu"], "cuda", (5.0, "nvml")),
        (["ram", "cpu_load"], "cuda", (3.0, "estimated")),
    ],
)
def test_a_counter_is_never_mixed_with_assumed_watts(modes, device, expected):
    assert e.share(figures(cpu=1.0, ram=2.0, gpu=4.0), modes, device) == expected


def test_a_short_loop_claims_nothing_and_runs_nothing():
    def answer(_texts: list[str]) -> list[str]:
        raise AssertionError("ran")

    found = e.energy_of(answer, ["x"], seconds=29.9, country="USA")
    assert found == e.Energy(None, None, "not measured")


def test_energy_per_thousand_texts(monkeypatch):
    class Meter:
        def __init__(self, country: str, device: str) -> None:
            assert (country, device) == ("FRA", "cpu")

        def start(self) -> None:
            self.begin = calls[0]

        def stop(self) -> tuple[float, float, str]:
            return 2e-6 * calls[0], 1e-4 * calls[0], "estimated"

    calls = [0]

    def answer(texts: list[str]) -> list[str]:
        assert len(texts) == 1
        calls[0] += 1
        time.sleep(0.01)
        return texts

    monkeypatch.setattr(e, "_Meter", Meter)
    monkeypatch.setattr(e, "LEAST_SECONDS", 0.1)
    found = e.energy_of(answer, ["x", "y"], seconds=0.2, country="FRA")
    assert 10 <= calls[0] <= 21
    assert found.kwh_per_1k == pytest.approx(2e-3)
    assert found.co2e_g_per_1k == pytest.approx(0.1)
    assert found.method == "estimated"


def test_a_stage_is_metered_quietly_and_leaves_no_file(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO), e.StageEnergy("USA") as meter:
        time.sleep(1.0)
    assert meter.method in ("rapl", "nvml", "estimated")
    assert meter.kwh is not None
    assert 1e-8 < meter.kwh < 1e-3  # 36 mW to 3.6 kW
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    said = capfd.readouterr()
    assert "codecarbon" not in (said.out + said.err + caplog.text).lower()


@pytest.mark.alone
def test_only_the_first_start_on_a_machine_is_slow(tmp_path):
    code = (
        "import time\n"
        "from tasks.evaluation.energy import StageEnergy\n"
        "begin = time.process_time()\n"
        "with StageEnergy('USA') as energy: pass\n"
        "print(time.process_time() - begin)"
    )
    environment = {**os.environ, "STILLROOM_HOME": str(tmp_path)}

    def start() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return float(done.stdout)

    start()
    known = json.loads((tmp_path / "energy" / "processor.json").read_text())
    assert set(known) == {"key", "model", "tdp"}
    assert start() < 0.8 * pace()  # in proportion to this machine's starts


def test_what_is_remembered_of_another_processor_is_not_used(tmp_path):
    path = tmp_path / "processor.json"
    path.write_text(json.dumps({"key": "0.0 1 x Abacus", "model": "Abacus", "tdp": 1}))
    from codecarbon.core import hardware_cache

    before = hardware_cache._tdp
    hardware_cache._tdp = None
    try:
        e._remember_processor(path)
        assert hardware_cache._tdp is None
    finally:
        hardware_cache._tdp = before


@pytest.mark.parametrize("where", ["__init__", "start", "stop"])
def test_a_broken_meter_never_reaches_the_stage(monkeypatch, where):
    def fail(*_args: object) -> None:
        raise OSError("no counter")

    monkeypatch.setattr(e._Meter, where, fail)
    with e.StageEnergy("USA") as meter:
        done = True
    assert done
    assert meter.kwh is None
    assert meter.method == "not measured"


def test_the_stages_own_error_passes_through():
    with pytest.raises(KeyError), e.StageEnergy("USA"):
        raise KeyError("stage")
