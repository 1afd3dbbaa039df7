"""ONNX Runtime's own quantiser: dynamic int8, per channel, of the teacher's export."""

from __future__ import annotations

from pathlib import Path

import onnx
from child import keep_beside, main, onnx_answer
from onnxruntime.quantization import QuantType, quantize_dynamic


def build(room: Path) -> None:
    model = onnx.load(room / "servable/model.onnx")
    del model.graph.value_info[:]  # stale shapes make the quantiser refuse the graph
    quantize_dynamic(model, str(room / "artifact/model.onnx"), per_channel=True,
                     weight_type=QuantType.QInt8)  # fmt: skip
    keep_beside(room, "tokenizer.json", "labels.json", "serving.json")


if __name__ == "__main__":
    main(build, lambda room: onnx_answer(room / "artifact/model.onnx", room / "artifact"))
