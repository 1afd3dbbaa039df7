"""Turn the recovered model into the servable folder, in the form that the hardware profile likes.

python -m tasks.quantize
dvc repro quantize
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tasks.evaluation.quality import quality
from tasks.hardware import PROFILES
from tasks.modeling.checkpoint import load_checkpoint
from tasks.paths import FINETUNED, QUANTIZED, TRAIN, VALIDATION
from tasks.problems.classification import encode, logits_of, read_split, read_tokenizer
from tasks.quantization.confidence import fit_temperature, fold_temperature
from tasks.quantization.export import check_export, export_onnx, write_serving
from tasks.quantization.forms import precision, weight_bits
from tasks.quantization.layers import weighted_nodes
from tasks.quantization.search import Exam, quantise
from tasks.release.servable import Servable, artifact_sha256, file_bytes, file_hashes
from tasks.schema import Params, Quantize
from tasks.stage import Metrics, run, say


def main(params: Params) -> Metrics:
    config, max_length = params.quantize, params.data.max_length
    profile = PROFILES[params.hardware.profile]
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
    ids = encode(tokenizer, validation.texts)
    QUANTIZED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        graph = Path(room) / "float.onnx"
        export_onnx(model, graph, max_length=max_length)
        difference = check_export(model, graph, ids[:64], pad_id=model.config.pad_token_id)
        exam = Exam(
            graph,
            weighted_nodes(graph, model),
            ids,
            validation.labels,
            float_logits / temperature,
            calibration_ids(config, tokenizer, params.seed),
        )
        quantisation = quantise(exam, QUANTIZED / "model.onnx", config, profile, say=say)
    write_serving(
        FINETUNED, QUANTIZED, max_length=max_length, profile=profile.name,
        precision=precision(config), weight_bits=weight_bits(config, profile),
    )  # fmt: skip

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
        "quantisation": quantisation,
        "validation": quality(logits, validation.labels),
    }


def calibration_ids(config: Quantize, tokenizer: Tokenizer, seed: int) -> Sequence[Sequence[int]]:
    """Piece ids of the training texts that static ranges are taken from; none for other schemes."""
    if config.scheme != "static":
        return []
    texts = read_split(TRAIN).texts
    count = min(config.calibration.samples, len(texts))
    picked = np.random.default_rng(seed).choice(len(texts), count, replace=False)
    return encode(tokenizer, [texts[i] for i in sorted(picked)])


if __name__ == "__main__":
    run("quantize", main)
