"""What every peer's process has in common: it answers texts, and times each call itself.

    python infra/peers/NAME.py build ROOM      # the artifact, from what lies in ROOM
    python infra/peers/NAME.py serve ROOM      # a JSON request a line in, a JSON answer a line out

ROOM has ``teacher/`` (checkpoint), ``servable/`` (its fp32 ONNX export), ``train.jsonl`` and, once
built, ``artifact/``. It runs in an environment of the peer's own: only the standard library and
numpy are imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

import numpy as np

Answer = Callable[[str], np.ndarray]


def main(build: Callable[[Path], None], load: Callable[[Path], Answer]) -> None:
    """Do what the command line says.

    Args:
        build: writes ``ROOM/artifact``.
        load: what answers from it: a text to logits ``[classes]``.
    """
    word, room = sys.argv[1], Path(sys.argv[2])
    # whatever a library prints must not come between the answers
    out, sys.stdout = sys.stdout, sys.stderr
    if word == "build":
        (room / "artifact").mkdir(parents=True, exist_ok=True)
        build(room)
        return
    answer = load(room)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(respond(answer, json.loads(line))), file=out, flush=True)


def respond(answer: Answer, request: dict[str, list[str]]) -> dict[str, list[object]]:
    """Logits of each text of a request, and the ms from text to the index of its label."""
    logits, times = [], []
    for text in request["texts"]:
        begin = perf_counter_ns()
        row = answer(text)
        int(row.argmax())
        times.append((perf_counter_ns() - begin) / 1e6)
        logits.append([float(value) for value in row])
    return {"logits": logits, "ms": times}


def encoder(folder: Path) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """A text to ids and mask ``[1, length]``, by the tokenizer of a servable folder."""
    from tokenizers import Tokenizer

    serving = json.loads((folder / "serving.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(serving["max_length"])

    def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        return ids, np.ones_like(ids)

    return encode


def onnx_answer(model: Path, servable: Path) -> Answer:
    """An ONNX file on ONNX Runtime with one thread and all else as it comes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    encode = encoder(servable)

    def answer(text: str) -> np.ndarray:
        ids, mask = encode(text)
        return np.asarray(session.run(None, {"input_ids": ids, "attention_mask": mask})[0][0])

    return answer


def keep_beside(room: Path, *names: str) -> None:
    """Copy files of the teacher's servable folder that answering needs to the artifact."""
    for name in names:
        (room / "artifact" / name).write_bytes((room / "servable" / name).read_bytes())
