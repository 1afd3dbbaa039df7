"""Turn the recovered model into the servable folder: int8 on ONNX Runtime.

python -m tasks.quantize
dvc repro quantize
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import load_checkpoint
from tasks.params import Params
from tasks.paths import FINETUNED, QUANTIZED, VALIDATION
from tasks.problems.classification import encode, logits_of, read_split, read_tokenizer
from tasks.quantization.export import check_export, export_onnx, write_serving
from tasks.quantization.post_training import quantize
from tasks.release.servable import Servable, artifact_sha256, file_bytes, file_hashes
from tasks.stage import Metrics, run, say


def main(params: Params) -> Metrics:
    config, max_length = params.quantize, params.data.max_length
    model = load_checkpoint(FINETUNED)
    tokenizer = read_tokenizer(FINETUNED, max_length)
    validation = read_split(VALIDATION)
    QUANTIZED.mkdir(parents=True, exist_ok=True)
    target = QUANTIZED / "model.onnx"
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "float.onnx"
        say("quantize: exporting")
        export_onnx(model, graph, max_length=max_length)
        ids = encode(tokenizer, validation.texts[:64])
        difference = check_export(model, graph, ids, pad_id=model.config.pad_token_id)
        if config.scheme == "none":
            shutil.copyfile(graph, target)
        else:
            say("quantize: int8")
            quantize(
                graph,
                target,
                per_channel=config.per_channel,
                embeddings=config.embeddings,
                reduce_range=params.hardware.profile == "cpu-avx2",
            )
    precision = "fp32" if config.scheme == "none" else "int8"
    write_serving(
        FINETUNED, QUANTIZED, max_length=max_length, profile=params.hardware.profile,
        precision=precision,
    )  # fmt: skip

    servable = Servable(QUANTIZED)
    # one by one, as they are served: the scales of activations are those of a whole batch
    logits = np.concatenate([servable.logits([text]) for text in validation.texts])
    float_logits = logits_of(model, tokenizer, validation.texts)
    return {
        "precision": precision,
        "export_difference": difference,
        "artifact_sha256": artifact_sha256(file_hashes(QUANTIZED)),
        "file_bytes": file_bytes(QUANTIZED),
        "flipped_by_quantisation": float((logits.argmax(-1) != float_logits.argmax(-1)).mean()),
        "validation": quality(logits, validation.labels),
    }


if __name__ == "__main__":
    run("quantize", main)
