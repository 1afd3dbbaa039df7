"""Make the bundle: the bytes that passed, a manifest of facts, a model card.

    python -m tasks.deploy
    dvc repro deploy

Refuses without a passing verdict on exactly these bytes.
"""

from __future__ import annotations

import json
import shutil

from tasks.errors import IntegrityError
from tasks.files import write_json
from tasks.paths import DEPLOYED, GATE, QUANTIZED
from tasks.release.gate import Verdict
from tasks.release.model_card import render
from tasks.release.naming import model_name
from tasks.release.servable import (
    Servable,
    artifact_sha256,
    file_bytes,
    file_hashes,
)
from tasks.schema import Params
from tasks.stage import Metrics, read_metrics, run, say

LINEAGE = ("fetch", "prepare", "baseline", "teach", "distill", "prune", "finetune", "quantize")


def main(params: Params) -> Metrics:
    verdict = Verdict.from_dict(json.loads(GATE.read_text("utf-8")))
    verdict.require()
    hashes = file_hashes(QUANTIZED)
    sha256 = artifact_sha256(hashes)
    if sha256 != verdict.artifact_sha256:
        raise IntegrityError(
            f"{QUANTIZED}: found {sha256[:12]}, the gate judged {verdict.artifact_sha256[:12]}",
            next_command="dvc repro",
        )
    validated = read_metrics("validate")
    DEPLOYED.mkdir(parents=True, exist_ok=True)
    for name in hashes:
        shutil.copyfile(QUANTIZED / name, DEPLOYED / name)
    manifest = {
        "format": 1,
        "model": model_name(params),
        "artifact_sha256": sha256,
        "file_bytes": file_bytes(DEPLOYED),
        "files": hashes,
        "profile": params.hardware.profile,
        "params": params.model_dump(mode="json"),
        "quality": validated["candidate"],
        "teacher_quality": validated["teacher"],
        "gate": verdict.as_dict(),
    }
    write_json(DEPLOYED / "manifest.json", manifest)
    lineage = {stage: read_metrics(stage) for stage in LINEAGE}
    card = render(manifest, lineage, validated.get("evidence"))
    (DEPLOYED / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    Servable(DEPLOYED).close()
    say(f"deploy: {file_bytes(DEPLOYED) / 1e6:.2f} MB, artifact {sha256[:12]}")
    return {"artifact_sha256": sha256, "file_bytes": file_bytes(DEPLOYED)}


if __name__ == "__main__":
    run("deploy", main)
