"""NNCF's post-training quantisation for OpenVINO: transformer preset, 300 training texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino
from child import Answer, encoder, keep_beside, main

SAMPLES = 300


def build(room: Path) -> None:
    import nncf

    encode = encoder(room / "servable")
    lines = (room / "train.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:: max(len(lines) // SAMPLES, 1)]][:SAMPLES]

    def feed(text: str) -> dict[str, np.ndarray]:
        ids, mask = encode(text)
        return {"input_ids": ids, "attention_mask": mask}

    model = openvino.Core().read_model(room / "servable/model.onnx")
    quantised = nncf.quantize(model, nncf.Dataset(texts, feed), subset_size=len(texts),
                              model_type=nncf.ModelType.TRANSFORMER)  # fmt: skip
    openvino.save_model(quantised, room / "artifact/model.xml")
    keep_beside(room, "tokenizer.json", "labels.json", "serving.json")


def load(room: Path) -> Answer:
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(room / "artifact/model.xml", "CPU", settings)
    request, encode = compiled.create_infer_request(), encoder(room / "artifact")

    def answer(text: str) -> np.ndarray:
        ids, mask = encode(text)
        found = request.infer({"input_ids": ids, "attention_mask": mask})
        return np.asarray(found[compiled.output(0)][0])

    return answer


if __name__ == "__main__":
    main(build, load)
