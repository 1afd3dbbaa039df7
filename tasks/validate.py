"""Judge the servable folder on test, text in, label out, and write the report.

    python -m tasks.validate
    dvc repro validate

The only stage that opens test. It exits 0 also when the gate refuses: a refusal is a result,
and `deploy` is what then does not happen.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from tokenizers import Tokenizer

from tasks.errors import IntegrityError
from tasks.evaluation.adaptive import adaptive_depth
from tasks.evaluation.energy import Energy, energy_of
from tasks.evaluation.evidence import (
    Answers,
    declared_slices,
    from_answers,
    from_behaviour,
    texts_of_lengths,
)
from tasks.evaluation.footprint import flops
from tasks.evaluation.hubless import quality
from tasks.evaluation.lasting import lasting
from tasks.evaluation.latency import (
    Answerer,
    ColdStart,
    Latency,
    answerer,
    cold_start,
    engine_ratio,
    grid,
    measure,
)
from tasks.evaluation.linear import LinearModel
from tasks.evaluation.page import render_page
from tasks.evaluation.pareto import plot_pareto
from tasks.evaluation.payback import payback, stage_energy
from tasks.evaluation.quality import answered
from tasks.evaluation.report import Details, notes, render_markdown
from tasks.evaluation.statistics import (
    detectable_drop,
    discordance,
    flip_rate,
    paired_bootstrap,
    retained_interval,
    shrunken_class_drops,
)
from tasks.evaluation.summary import Row, summary
from tasks.files import write_json, write_text
from tasks.hardware import detect_profile
from tasks.modeling.checkpoint import checkpoint_bytes, load_checkpoint, parameters
from tasks.paths import (
    DISTILLED,
    ELSEWHERE,
    FINETUNED,
    GATE,
    LABELS,
    LONG_TEXTS,
    METRICS,
    PRUNED,
    QUANTIZED,
    REPORTS,
    SUMMARY,
    TEACHER,
    TEACHER_SERVABLE,
    TEST,
    TRAIN,
    VALIDATION,
)
from tasks.problems.classification import (
    Split,
    encode,
    logits_of,
    pad,
    read_labels,
    read_split,
    read_tokenizer,
)
from tasks.problems.sampling import spread
from tasks.pruning.sparsity import sparsity_of
from tasks.release.gate import Evidence, judge
from tasks.release.servable import Servable, artifact_sha256, file_bytes, file_hashes
from tasks.release.stages import read_stage_files
from tasks.runtimes.pytorch import PyTorchRuntime
from tasks.schema import Evaluation, Params
from tasks.stage import Metrics, finite, read_metrics, run, say
from tasks.training.logit_cache import stored_texts

CHECKPOINTS = {"distill": DISTILLED, "prune": PRUNED, "finetune": FINETUNED}
COLD_STARTS = 3
GRID_CALLS = 8
"""Of each model in each cell of the latency grid."""
STAGES = ("fetch", "prepare", "baseline", "teach", "distill", "prune", "finetune", "quantize")
"""Those before this one: what the pipeline cost so far."""


def main(params: Params) -> Metrics:
    test, names, limit = read_split(TEST), read_labels(LABELS), params.data.max_length
    linear = fit_linear(names, params.seed)
    logits = {"teacher": checkpoint_logits(TEACHER, test.texts, limit),
              "linear": linear.logits(test.texts)}  # fmt: skip
    for stage, folder in CHECKPOINTS.items():
        logits[stage] = checkpoint_logits(folder, test.texts, limit)
    logits["quantize"] = logits["deploy"] = servable_logits(QUANTIZED, test.texts, names)
    measured = {name: quality(values, test.labels) for name, values in logits.items()}
    for name, values in measured.items():
        say(f"validate: {name}: accuracy {values['accuracy']:.4f} on {len(test.texts)} test texts")

    answers = {name: answered(values) for name, values in logits.items()}
    right = {name: values == test.labels for name, values in answers.items()}
    resamples, seed = params.evaluation.bootstrap, params.seed
    drop = paired_bootstrap(right["teacher"], right["deploy"], resamples=resamples, seed=seed)
    classes = shrunken_class_drops(
        right["teacher"], right["deploy"], test.labels,
        min_rows=params.gate.class_min_rows, prior_rows=params.gate.class_prior_rows,
    )  # fmt: skip
    smallest = detectable_drop(len(test.texts), discordance(right["teacher"], right["deploy"]))
    teacher, candidate = measured["teacher"], measured["deploy"]
    verdict = judge(
        Evidence(
            drop=drop.point,
            drop_upper95=drop.high,
            macro_f1_drop=100 * (teacher["macro_f1"] - candidate["macro_f1"]),
            class_drop=classes.worst_drop,
            ece=candidate["ece"],
            bytes=file_bytes(QUANTIZED),
            parity=float((answers["deploy"] == answers["finetune"]).mean()),
            artifact_sha256=artifact_sha256(file_hashes(QUANTIZED)),
            detectable_drop=smallest,
        ),
        params.gate,
    )
    write_json(GATE, verdict.as_dict())
    say(f"validate: gate {'passed' if verdict.passed else 'refused'}")

    with tempfile.TemporaryDirectory() as room:
        linear_file = Path(room) / "linear.joblib"
        linear_bytes = linear.save(linear_file)
        speed = measure_speed(linear, linear_file, test.texts, params.evaluation, limit)
    rows = report_rows(measured, speed, linear, linear_bytes, test.texts, limit)
    answers_of = Answers(test.texts, test.labels, names, logits["teacher"], logits["deploy"])
    retained = retained_interval(right["teacher"], right["deploy"], resamples=resamples, seed=seed)
    result = finite(summary(
        rows,
        gate=verdict.as_dict(),
        n=len(test.texts),
        retained=retained,
        onnx_fp32_p50=speed.latency.rows["teacher on ONNX Runtime"][1].p50,
        evidence={
            **from_answers(
                answers_of,
                classes,
                read_metrics("quantize"),
                read_metrics("distill"),
                read_metrics("quantize.runtime")["p50_ms_by_runtime"],
            ),
            **gather(answers_of, params),
            **depth_curve(test, names, params.evaluation),
            "latency": speed.grid,
            "engine": speed.engine,
            "energy": payback(
                stage_energy(METRICS, STAGES),
                *(speed.energy[name] for name in ("teacher", "deploy")),
            ),
        },
    ))  # fmt: skip
    details = Details(
        drop=drop,
        flip_rate=flip_rate(answers["teacher"], answers["deploy"]),
        detectable_drop=smallest,
        classes=classes,
        labels=names,
        latency=speed.latency.rows,
        paired_speed=speed.latency.paired_ratio("teacher", "deploy"),
        profile=params.hardware.profile,
        measured_on=detect_profile(like=params.hardware.profile),
        device=params.hardware.device,
        sparsity=sparsity_of(load_checkpoint(FINETUNED)),
        planned_ms=params.prune.budget.latency_ms if params.prune.enabled else 0.0,
    )
    write_json(SUMMARY, result)
    (REPORTS / "summary.md").write_text(render_markdown(result, details), encoding="utf-8")
    write_text(REPORTS / "index.html", render_page(result, notes(result, details)))
    plot_pareto(result, REPORTS / "pareto.png")
    return {**measured, "candidate": candidate, "flip_rate": details.flip_rate,
            "drop": drop.point, "passed": verdict.passed, "evidence": lasting(result)}  # fmt: skip


def gather(answers: Answers, params: Params) -> dict[str, Any]:
    """What teacher and candidate answer where texts are not as test has them."""
    say("validate: altered texts, slices, texts from elsewhere")
    limit = params.data.max_length
    model, tokenizer = load_checkpoint(TEACHER), read_tokenizer(TEACHER, limit)
    return from_behaviour(
        answers,
        lambda texts: logits_of(model, tokenizer, texts),
        lambda texts: servable_logits(QUANTIZED, texts, answers.names),
        Tokenizer.from_file(str(QUANTIZED / "tokenizer.json")),
        params.evaluation,
        train=read_split(TRAIN).texts,
        elsewhere=list(stored_texts(ELSEWHERE)),
        posts=list(stored_texts(LONG_TEXTS)),
        columns=declared_slices(TEST, params.evaluation.slices),
        max_length=limit,
        seed=params.seed,
    )


def fit_linear(names: Sequence[str], seed: int) -> LinearModel:
    """The model that any student must beat to be worth shipping."""
    train, validation = read_split(TRAIN), read_split(VALIDATION)
    say("validate: fitting the linear model")
    return LinearModel.fit(train.texts, train.labels, names, seed=seed,
                           validation=(validation.texts, validation.labels))  # fmt: skip


def checkpoint_logits(folder: Path, texts: Sequence[str], max_length: int) -> np.ndarray:
    """What a checkpoint of the chain answers in PyTorch."""
    return logits_of(load_checkpoint(folder), read_tokenizer(folder, max_length), texts)


def servable_logits(folder: Path, texts: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """What the served bytes answer, one text at a time as they are served, by label name.

    Raises:
        IntegrityError: the folder's labels are not those of the data.
    """
    servable = Servable(folder)
    if sorted(servable.labels) != sorted(names):
        raise IntegrityError(
            f"{folder / 'labels.json'}: found other labels than in {LABELS}, expected the same",
            next_command="dvc repro --force quantize",
        )
    order = [servable.labels.index(name) for name in names]
    return np.concatenate([servable.logits([text]) for text in texts])[:, order]


@dataclass(frozen=True)
class Speed:
    """What the clock said of teacher, linear model and candidate."""

    latency: Latency
    grid: list[dict[str, Any]]
    engine: dict[str, float]
    cold: dict[str, ColdStart]
    energy: dict[str, Energy]


def measure_speed(
    linear: LinearModel,
    linear_file: Path,
    texts: Sequence[str],
    config: Evaluation,
    max_length: int,
) -> Speed:
    """Time all models on the same texts in one interleaved run, with one thread each."""
    timed = spread(texts, config.latency_texts)
    candidate, teacher_onnx = Servable(QUANTIZED), Servable(TEACHER_SERVABLE)
    answerers: dict[str, Answerer] = {
        "teacher": PyTorchRuntime(TEACHER, max_length=max_length, threads=1).predict,
        "teacher on ONNX Runtime": answerer(teacher_onnx),
        "linear": linear.predict,
        "deploy": answerer(candidate),
    }
    say(f"validate: latency on {len(timed)} texts, {config.latency_rounds} rounds, interleaved")
    latency = measure(
        answerers, timed, rounds=config.latency_rounds, batches=config.batches, warmup=10
    )
    engine = engine_ratio(candidate, timed)
    cells = latency_grid(texts, config, max_length)
    say("validate: cold starts")
    text_file = linear_file.with_name("text")
    text_file.write_text(timed[0], encoding="utf-8")
    places = {"teacher": ("checkpoint", TEACHER), "linear": ("linear", linear_file),
              "deploy": ("servable", QUANTIZED)}  # fmt: skip
    once = [sys.executable, "-m", "tasks.evaluation.answer_once"]
    repeats = min(COLD_STARTS, config.latency_rounds)
    cold = {
        name: cold_start([*once, kind, str(path), str(text_file), str(max_length)], repeats)
        for name, (kind, path) in places.items()
    }
    energy = {}
    for name in places:
        say(f"validate: energy of {name}, {config.energy_seconds:g} s")
        on_gpu = name == "deploy" and not candidate.describe()["provider"].startswith("CPU")
        energy[name] = energy_of(
            answerers[name], timed, seconds=config.energy_seconds, country=config.country,
            device="cuda" if on_gpu else "cpu",
        )  # fmt: skip
    return Speed(latency, cells, engine, cold, energy)


def depth_curve(test: Split, names: Sequence[str], config: Evaluation) -> dict[str, Any]:
    """What other confidences would have given, where the candidate has early exits."""
    if len(read_stage_files(QUANTIZED)) == 1:
        return {}
    say("validate: accuracy and latency over the confidence asked for")
    found = adaptive_depth(
        Servable(QUANTIZED), test.texts, test.labels, names,
        timed=spread(test.texts, config.latency_texts), rounds=config.latency_rounds,
    )  # fmt: skip
    return {"adaptive_depth": found}


def latency_grid(texts: Sequence[str], config: Evaluation, max_length: int) -> list[dict[str, Any]]:
    """Teacher and candidate for several lengths and batches, with one thread and with all."""
    lengths = sorted({min(length, max_length) for length in config.lengths})
    if not lengths:
        return []
    say(f"validate: latency of texts of {', '.join(map(str, lengths))} pieces")
    tokenizer = read_tokenizer(QUANTIZED, max_length)
    made = texts_of_lengths(tokenizer, texts, lengths, GRID_CALLS)
    rows, before = [], torch.get_num_threads()
    for threads in sorted({1, joblib.cpu_count()}):
        candidate = Servable(QUANTIZED, threads=threads)
        answerers: dict[str, Answerer] = {
            "teacher": PyTorchRuntime(TEACHER, max_length=max_length, threads=threads).predict,
            "deploy": lambda batch, served=candidate: [p.label for p in served.predict(batch)],
        }
        rows += grid(answerers, made, batches=config.batches, threads=threads, calls=GRID_CALLS)
        candidate.close()
    torch.set_num_threads(before)
    return rows


def report_rows(
    measured: dict[str, dict[str, float]],
    speed: Speed,
    linear: LinearModel,
    linear_bytes: int,
    texts: Sequence[str],
    max_length: int,
) -> list[Row]:
    """Teacher, linear model, every stage, the candidate."""

    def row(stage: str, size: int, count: int, operations: int) -> Row:
        timed = stage in speed.cold
        return Row(
            stage, measured[stage], size, count, operations,
            latency=speed.latency.rows[stage][1] if timed else None,
            cold=speed.cold.get(stage), energy=speed.energy.get(stage),
        )  # fmt: skip

    rows = []
    for stage, folder in {"teacher": TEACHER, **CHECKPOINTS}.items():
        count, operations = model_size(folder, texts, max_length)
        rows.append(row(stage, checkpoint_bytes(folder), count, operations))
    rows.insert(1, row("linear", linear_bytes, linear.parameters, linear.flops(texts)))
    rows.append(row("quantize", file_bytes(QUANTIZED), count, operations))
    rows.append(row("deploy", file_bytes(QUANTIZED), count, operations))
    return rows


def model_size(folder: Path, texts: Sequence[str], max_length: int) -> tuple[int, int]:
    """Parameters, and floating-point operations for a text of median length."""
    model = load_checkpoint(folder)
    ids = sorted(encode(read_tokenizer(folder, max_length), texts), key=len)
    batch, mask = pad([ids[len(ids) // 2]], model.config.pad_token_id)
    with torch.inference_mode(False):
        operations = flops(lambda: model(input_ids=batch, attention_mask=mask))
    return parameters(model), operations


if __name__ == "__main__":
    run("validate", main)
