"""Where each stage puts what, relative to the workspace root."""

from pathlib import Path

RAW = Path("data/raw")
PRETRAINED = Path("data/pretrained")
STUDENT = Path("data/student")
TEACHERS = Path("data/teachers")
SECOND = Path("data/second")
WRITER = Path("data/writer")
PREPARED = Path("data/prepared")
TRAIN = PREPARED / "train.parquet"
ELSEWHERE = PREPARED / "elsewhere.parquet"
LONG_TEXTS = PREPARED / "long_texts.parquet"
UNLABELLED = PREPARED / "unlabelled.parquet"
VALIDATION = PREPARED / "validation.parquet"
TEST = PREPARED / "test.parquet"
LABELS = PREPARED / "labels.json"
TEACHER = Path("data/models/baseline")
TEACHER_SERVABLE = Path("data/models/teacher_servable")
TEACHER_LOGITS = Path("data/teacher_logits")
DISTILLED = Path("data/models/distill")
PRUNED = Path("data/models/prune")
FINETUNED = Path("data/models/finetune")
QUANTIZED = Path("data/models/quantize")
DEPLOYED = Path("data/models/deploy")
EARLY = "early.safetensors"
"""Beside a student's checkpoint: its weights from early in training."""
METRICS = Path("metrics")
REPORTS = Path("reports")
GATE = METRICS / "gate.json"
SUMMARY = REPORTS / "summary.json"
PLACEHOLDERS = tuple(
    f"data/own/{name}"
    for name in (
        "train",
        "validation",
        "test",
        "unlabelled",
        "elsewhere",
        "long_texts",
        "teacher",
        "teachers",
        "student",
        "run",
        "writer",
    )
)
"""Tracked files that mean "not given": a DVC dependency may not be empty."""
