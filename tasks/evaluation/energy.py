"""Electricity, measured where a counter can be read and estimated where none can.

CodeCarbon's offline tracker does the work: nothing is looked up, sent, logged or written.

    rapl        the processor's own counters, package and memory
    nvml        the counter of the NVIDIA device that did the work
    estimated   watts assumed from processor model and load, times seconds

An estimate repeats the time that passed, so a ratio of two estimates is their speed ratio.
What CodeCarbon spends most on is finding out the processor's watts, two seconds at every start:
that is kept in `home`, so that only the first stage on a machine pays for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Literal

from tasks.home import home

LEAST_SECONDS = 30.0
Method = Literal["rapl", "nvml", "estimated", "not measured"]
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True)
class Energy:
    """Electricity per thousand texts, and how it was had; None where it was not measured."""

    kwh_per_1k: float | None
    co2e_g_per_1k: float | None
    method: Method


def energy_of(
    answer: Callable[[list[str]], object],
    texts: Sequence[str],
    *,
    seconds: float,
    country: str,
    device: str = "cpu",
) -> Energy:
    """Answer one text after the other for at least ``seconds`` and read the meter.

    Args:
        answer: text in, label out.
        texts: repeated as long as it takes.
        seconds: loop length; under `LEAST_SECONDS` nothing is run and nothing claimed.
        country: ISO 3166 alpha-3, for grams of CO2 equivalent per kWh.
        device: ``cpu`` or ``cuda``: whose electricity counts.
    """
    if seconds < LEAST_SECONDS or not texts:
        return Energy(None, None, NOT_MEASURED)
    meter = _Meter(country, device)
    meter.start()
    begin, answered = perf_counter(), 0
    while perf_counter() - begin < seconds:
        answer([texts[answered % len(texts)]])
        answered += 1
    kwh, grams, method = meter.stop()
    return Energy(kwh / answered * 1e3, grams / answered * 1e3, method)


class StageEnergy:
    """The electricity of a stage; whatever goes wrong inside, the stage never sees it.

        with StageEnergy(params.evaluation.country) as energy:
            work()
        energy.kwh, energy.method

    `kwh` is None where it could not be had.
    """

    def __init__(self, country: str, *, device: str = "cpu") -> None:
        self.kwh: float | None = None
        self.method: Method = NOT_MEASURED
        self._country, self._device = country, device
        self._meter: _Meter | None = None

    def __enter__(self) -> StageEnergy:
        with contextlib.suppress(Exception):
            meter = _Meter(self._country, self._device)
            meter.start()
            self._meter = meter
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._meter is not None:
            with contextlib.suppress(Exception):
                self.kwh, _, self.method = self._meter.stop()


class _Meter:
    """One CodeCarbon tracker, quiet and offline."""

    def __init__(self, country: str, device: str) -> None:
        from codecarbon import OfflineEmissionsTracker

        # before the constructor, which speaks before it reads `log_level`
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        _remember_processor(_processor_file())
        self._device = device
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code=country,
            output_methods=[],
            emissions_endpoint=None,
            allow_multiple_runs=True,
            rapl_include_dram=True,
            log_level="critical",
        )

    def start(self) -> None:
        """Find the counters, then begin."""
        self._tracker.start()
        _write_processor(_processor_file())

    def stop(self) -> tuple[float, float, Method]:
        """kWh, grams of CO2 equivalent, and the method."""
        self._tracker.stop()
        data = self._tracker.final_emissions_data
        kwh, method = share(data, [_mode(part) for part in self._tracker._hardware], self._device)
        grams = 1e3 * data.emissions * kwh / data.energy_consumed if data.energy_consumed else 0.0
        return kwh, grams, method


def share(data: Any, modes: Sequence[str], device: str) -> tuple[float, Method]:
    """Which part of what CodeCarbon reports is this work's, and how it was had.

    A counter's figure is not mixed with the assumed watts of memory; an idle GPU's is not
    charged to work on the CPU.

    Args:
        data: has ``cpu_energy``, ``ram_energy``, ``gpu_energy`` in kWh.
        modes: of each tracked part, as `_mode` names them.
        device: ``cpu`` or ``cuda``.
    """
    counted = data.cpu_energy if "intel_rapl" in modes else 0.0
    if device == "cuda" and "gpu" in modes:
        return counted + data.gpu_energy, "nvml"
    if "intel_rapl" in modes:
        return counted, "rapl"
    return data.cpu_energy + data.ram_energy, "estimated"


def _mode(part: Any) -> str:
    """``intel_rapl``, ``cpu_load``, ``constant``, …, ``gpu`` or ``ram``."""
    return str(getattr(part, "_mode", type(part).__name__)).lower()


def _processor_file() -> Path:
    return home() / "energy" / "processor.json"


def _processor_key() -> str:
    """What the remembered watts hold for: this processor, as this CodeCarbon judges it."""
    cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return f"{version('codecarbon')} {len(models)} x {models[0] if models else 'unknown'}"


def _remember_processor(path: Path) -> None:
    """Spare CodeCarbon the search for the processor's watts, where it was made before."""
    with contextlib.suppress(Exception):
        known = json.loads(path.read_text("utf-8"))
        if known["key"] == _processor_key():
            hardware_cache = _hardware_cache()
            if hardware_cache._tdp is None:
                hardware_cache._tdp = SimpleNamespace(model=known["model"], tdp=known["tdp"])


def _write_processor(path: Path) -> None:
    with contextlib.suppress(Exception):
        found = _hardware_cache()._tdp
        if found is not None:
            content = {"key": _processor_key(), "model": found.model, "tdp": found.tdp}
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f"{path.name}.{os.getpid()}")
            scratch.write_text(json.dumps(content), encoding="utf-8")
            scratch.replace(path)


def _hardware_cache() -> Any:
    from codecarbon.core import hardware_cache

    return hardware_cache
