"""Turn the recovered model into the servable folder, in the form that the hardware profile likes.

python -m tasks.quantize
dvc repro quantize
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.errors import GateRefused
from tasks.evaluation.latency import p50_of
from tasks.evaluation.quality import quality
from tasks.hardware import PROFILES, Profile
from tasks.modeling.checkpoint import load_checkpoint
from tasks.modeling.exits import load_exits
from tasks.paths import FINETUNED, QUANTIZED, TRAIN, VALIDATION
from tasks.problems.classification import encode, logits_of, read_split, read_tokenizer
from tasks.problems.sampling import by_chance, spread
from tasks.quantization.aware import train_aware
from tasks.quantization.choice import Build, better, build, choose, form_for
from tasks.quantization.confidence import fit_temperature, fold_temperature
from tasks.quantization.export import check_export, export_onnx, write_serving
from tasks.quantization.forms import precision, weight_bits
from tasks.quantization.layers import weighted_nodes
from tasks.quantization.search import Exam
from tasks.quantization.stages import calibrate_exits, check_exits, serve_in_stages
from tasks.release.servable import Servable, artifact_sha256, file_bytes, file_hashes
from tasks.schema import Params, Quantize
from tasks.stage import Metrics, run, say, write_history

TIMED_TEXTS = 200
"""Of validation, where engines are timed against each other."""


def main(params: Params) -> Metrics:
    config, max_length = params.quantize, params.data.max_length
    profile = PROFILES[params.hardware.profile]
    model = load_checkpoint(FINETUNED)
    exits = load_exits(FINETUNED, model) if params.exits.layers else None
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
    temperatures: list[float] = []
    if exits and config.calibrate_confidence:
        temperatures = calibrate_exits(model, exits, ids, validation.labels)
    QUANTIZED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        graph = Path(room) / "float.onnx"
        export_onnx(model, graph, max_length=max_length, exits=exits)
        difference = check_export(model, graph, ids[:64], pad_id=model.config.pad_token_id)
        if exits:
            difference = max(difference, check_exits(model, exits, graph, ids[:64]))
        ranged = any(form_for(name, config).scheme == "static" for name in config.runtimes)
        exam = Exam(
            graph,
            [node for node in weighted_nodes(graph, model) if not node.output.startswith("exit_")],
            ids,
            validation.labels,
            float_logits / temperature,
            encode(tokenizer, calibration_texts(config, params.seed)) if ranged else [],
        )
        builds = [
            build_for(name, exam, Path(room) / name, config, profile, max_length)
            for name in config.runtimes
        ]
        times = times_of(builds, validation.texts)
        served = choose(builds, times)
        write_history("quantize", [])
        if wants_training(served) and not exits:
            target = Path(room) / "trained.onnx"
            texts = calibration_texts(config, params.seed)
            fidelity, cooled = train_aware(
                params, target, tokenizer, validation, exam.exact, texts, served
            )
            trained = served.retrained(fidelity, target)
            kept = better(served, trained)
            now = replace(kept, model=served.model,
                          record={**kept.record, "tried": trained.record["tried"]})  # fmt: skip
            builds = [now if made is served else made for made in builds]
            if kept is served:
                served = now
            else:
                shutil.copyfile(target, served.model)
                times = times_of(builds, validation.texts)
                served = choose(builds, times)
                if served is now:
                    temperature = cooled
        shutil.copytree(served.model.parent, QUANTIZED, dirs_exist_ok=True)
        quantisation = {
            **served.record, "runtime": served.runtime,
            "runtimes": [made.as_dict() for made in builds],
        }  # fmt: skip
    if len(builds) > 1:
        say(f"quantize: {served.runtime} serves")

    depth: Metrics = {}
    if exits:
        found = serve_in_stages(QUANTIZED, exits.layers, params.exits.confidence,
                                validation=validation, max_loss=config.max_loss)  # fmt: skip
        depth = {"exits": {**found, "temperatures": temperatures}}
        say(f"quantize: stops at {found['confidence']:g}: accuracy {found['accuracy']:.4f}, "
            f"{found['full_depth']:.4f} at full depth, stop at each exit: "
            f"{', '.join(f'{share:.0%}' for share in found['share'])}")  # fmt: skip

    require_budget(params, file_bytes(QUANTIZED), quantisation["action"])
    servable = Servable(QUANTIZED)
    # one by one, as they are served: the scales of activations are those of a whole batch
    logits = np.concatenate([servable.logits([text]) for text in validation.texts])
    return {
        "temperature": temperature,
        "ece_uncalibrated": quality(float_logits, validation.labels)["ece"],
        "precision": quantisation["precision"],
        "export_difference": difference,
        "artifact_sha256": artifact_sha256(file_hashes(QUANTIZED)),
        "file_bytes": file_bytes(QUANTIZED),
        "flipped_by_quantisation": quantisation["flip_rate"] if exits else float(
            (logits.argmax(-1) != float_logits.argmax(-1)).mean()
        ),
        "quantisation": quantisation,
        "validation": quality(logits, validation.labels),
        **depth,
        "runtime": {"p50_ms_by_runtime": times},
    }  # fmt: skip


def require_budget(params: Params, size: int, action: str) -> None:
    """Hold the served files to what pruning planned for: int8 all through, exits left out.

    Raises:
        GateRefused: they take more bytes.
    """
    limit, int8 = params.prune.budget.bytes, params.quantize.scheme in ("dynamic", "static")
    if params.prune.enabled and int8 and 0 < limit < size:
        raise GateRefused(
            f"prune.budget.bytes: the served files take {size:,}, expected at most {limit:,}; "
            f"done about int8: {action}; exits: {list(params.exits.layers)}",
            next_command=f"stillroom compress --set prune.budget.bytes={limit * limit // size}",
        )


def build_for(
    runtime: str, exam: Exam, folder: Path, config: Quantize, profile: Profile, max_length: int
) -> Build:
    """The servable folder for one engine."""
    folder.mkdir()
    made = build(runtime, exam, folder / "model.onnx", config, profile, say=say)
    write_serving(
        FINETUNED, folder, max_length=max_length, profile=profile.name, runtime=runtime,
        precision=precision(made.config), weight_bits=weight_bits(made.config, made.profile),
    )  # fmt: skip
    return made


def times_of(builds: Sequence[Build], texts: Sequence[str]) -> dict[str, float]:
    """p50 in ms from text to label by engine, timed in turn; empty where there is no choice."""
    here = [made for made in builds if made.absent is None]
    if len(here) < 2:
        return {}
    say(f"quantize: timing {', '.join(made.runtime for made in here)} on validation texts")
    times = p50_of([made.model.parent for made in here], spread(texts, TIMED_TEXTS), rounds=3)
    return {made.runtime: time for made, time in zip(here, times, strict=True)}


def calibration_texts(config: Quantize, seed: int) -> list[str]:
    """The training texts that ranges of activations are taken from."""
    texts = read_split(TRAIN).texts
    return [texts[i] for i in by_chance(len(texts), config.calibration.samples, seed)]


def wants_training(served: Build) -> bool:
    """Whether to train with simulated int8: asked for, or int8 alone has missed the budget."""
    mode, int8 = served.config.aware.mode, served.config.scheme in ("dynamic", "static")
    return int8 and (mode == "always" or (mode == "auto" and len(served.record["tried"]) > 1))


if __name__ == "__main__":
    run("quantize", main)
