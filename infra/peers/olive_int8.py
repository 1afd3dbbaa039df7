"""Olive's ONNX path: its pass OnnxDynamicQuantization over the teacher's export."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx
from child import keep_beside, main, onnx_answer


def build(room: Path) -> None:
    from olive.workflows import run

    with tempfile.TemporaryDirectory() as scratch:
        model = onnx.load(room / "servable/model.onnx")
        del model.graph.value_info[:]
        onnx.save(model, Path(scratch) / "model.onnx")
        run({
            "input_model": {"type": "ONNXModel", "model_path": str(Path(scratch) / "model.onnx")},
            "passes": {"int8": {"type": "OnnxDynamicQuantization"}},
            "output_dir": str(Path(scratch) / "out"),
            "cache_dir": str(Path(scratch) / "cache"),
            "evaluate_input_model": False,
        })  # fmt: skip
        made = sorted((Path(scratch) / "out").rglob("*.onnx"))
        shutil.copyfile(made[0], room / "artifact/model.onnx")
    keep_beside(room, "tokenizer.json", "labels.json", "serving.json")


if __name__ == "__main__":
    main(build, lambda room: onnx_answer(room / "artifact/model.onnx", room / "artifact"))
