"""What the registry keeps beside a bundle that the bundle itself must not hold."""

import json
from pathlib import Path

from flows.provenance import costs

DAG = "stages:\n  prepare:\n    cmd: a\n  distill:\n    cmd: b\n  deploy:\n    cmd: c\n"


def test_each_stage_that_ran_has_its_time_and_energy_with_the_method(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(DAG)
    (tmp_path / "metrics").mkdir()
    ran = {"stage": "distill", "work_s": 18.0, "cpu_s": 36.2, "peak_memory_bytes": 8,
           "energy_kwh": 1e-4, "energy_method": "estimated", "machine": {"cpu": "x"}}  # fmt: skip
    (tmp_path / "metrics/distill.runtime.json").write_text(json.dumps(ran))
    (tmp_path / "metrics/prepare.runtime.json").write_text('{"stage": "prepare", "work_s": 1.5}')
    prepare, distill = costs(tmp_path)
    assert distill == {name: value for name, value in ran.items() if name != "machine"}
    assert (prepare["stage"], prepare["work_s"], prepare["energy_kwh"]) == ("prepare", 1.5, None)
