"""The teacher's export on ONNX Runtime, as it is."""

from __future__ import annotations

from pathlib import Path

from child import keep_beside, main, onnx_answer

FILES = ("model.onnx", "tokenizer.json", "labels.json", "serving.json")


def build(room: Path) -> None:
    keep_beside(room, *FILES)


if __name__ == "__main__":
    main(build, lambda room: onnx_answer(room / "artifact/model.onnx", room / "artifact"))
