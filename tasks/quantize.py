"""Turn the recovered model into the servable folder: int8 on ONNX Runtime.

python -m tasks.quantize
dvc repro quantize
"""

from __future__ import annotations

import numpy as np

from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import load_checkpoint
from tasks.paths import FINETUNED, QUANTIZED, VALIDATION
from tasks.problems.classification import encode, logits_of, read_split, read_tokenizer
from tasks.quantization.bundle import build_bundle, precision
from tasks.quantization.confidence import fit_temperature, fold_temperature
from tasks.release.servable import Servable, artifact_sha256, file_bytes, file_hashes
from tasks.schema import Params
from tasks.stage import Metrics, run, say


def main(params: Params) -> Metrics:
    config, max_length = params.quantize, params.data.max_length
    model = load_checkpoint(FINETUNED)
    tokenizer = read_tokenizer(FINETUNED, max_length)
    validation = read_split(VALIDATION)
    float_logits = logits_of(model, tokenizer, validation.texts)
    temperature = 1.0
    if config.calibrate_confidence:
        temperature = fit_temperature(float_logits, validation.labels)
        fold_temperature(model, temperature)
        say(f"quantize: confidence calibrated, temperature {temperature:.3f}")
    say("quantize: exporting")
    difference = build_bundle(
        model,
        QUANTIZED,
        config,
        checkpoint=FINETUNED,
        max_length=max_length,
        profile=params.hardware.profile,
        check=encode(tokenizer, validation.texts[:64]),
    )

    servable = Servable(QUANTIZED)
    # one by one, as they are served: the scales of activations are those of a whole batch
    logits = np.concatenate([servable.logits([text]) for text in validation.texts])
    return {
        "temperature": temperature,
        "ece_uncalibrated": quality(float_logits, validation.labels)["ece"],
        "precision": precision(config),
        "export_difference": difference,
        "artifact_sha256": artifact_sha256(file_hashes(QUANTIZED)),
        "file_bytes": file_bytes(QUANTIZED),
        "flipped_by_quantisation": float((logits.argmax(-1) != float_logits.argmax(-1)).mean()),
        "validation": quality(logits, validation.labels),
    }


if __name__ == "__main__":
    run("quantize", main)
