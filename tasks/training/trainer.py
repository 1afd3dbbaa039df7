"""One training run on Hugging Face `Trainer`, resumable, for teacher and student alike.

`Trainer` owns the loop, mixed precision, checkpoints and the distributed case; this module
gives it batches, the objective and a place to resume from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from tasks import params as schema
from tasks.errors import UnavailableError
from tasks.files import file_sha256
from tasks.home import home
from tasks.problems.classification import Split, encode, pad
from tasks.stage import say, write_history
from tasks.training.logit_cache import LogitCache
from tasks.training.objectives import distillation_loss


@dataclass(frozen=True)
class Trained:
    """What a finished run has to say of itself."""

    steps: int
    resumed_from: int
    """A step, 0 if nothing was resumed. It decides nothing, so it is no metric of the model."""


@dataclass(frozen=True)
class Distillation:
    """The teacher's part in the objective."""

    cache: LogitCache
    temperature: float
    alpha: float


class Rows(Dataset[dict[str, Any]]):
    """Encoded texts with their label and, when distilling, their row in the logit cache."""

    def __init__(self, ids: Sequence[list[int]], split: Split, cache: LogitCache | None) -> None:
        self._ids, self._labels = ids, split.labels
        self._rows = None if cache is None else cache.find(split.texts)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"input_ids": self._ids[index], "labels": int(self._labels[index])}
        return row if self._rows is None else {**row, "teacher_row": int(self._rows[index])}


class Collator:
    """Pads a batch and brings the teacher's logits for it."""

    def __init__(self, pad_id: int, cache: LogitCache | None) -> None:
        self._pad_id, self._cache = pad_id, cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row["input_ids"] for row in rows], self._pad_id)
        labels = torch.tensor([row["labels"] for row in rows])
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if self._cache is not None and "teacher_row" in rows[0]:
            where = np.array([row["teacher_row"] for row in rows])
            batch["teacher_logits"] = torch.from_numpy(self._cache.rows(where))
        return batch


class StudentTrainer(Trainer):
    """`Trainer` with the distillation objective; without a teacher it is plain cross-entropy."""

    def __init__(self, *args: Any, distillation: Distillation | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._distillation = distillation

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        teacher_logits = inputs.pop("teacher_logits", None)
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        if teacher_logits is None or self._distillation is None:
            loss = nn.functional.cross_entropy(outputs.logits.float(), labels)
        else:
            loss = distillation_loss(
                outputs.logits, teacher_logits, labels,
                temperature=self._distillation.temperature, alpha=self._distillation.alpha,
            )  # fmt: skip
        return (loss, outputs) if return_outputs else loss


class Progress(TrainerCallback):
    """Says where training stands, and keeps the curve in ``metrics/<stage>.history.jsonl``."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_history(self._stage, [_curve_point(row) for row in state.log_history])
        last = state.log_history[-1]
        if "eval_accuracy" in last:
            say(
                f"{self._stage}: epoch {last['epoch']:.0f}/{math.ceil(args.num_train_epochs)}  "
                f"validation accuracy {last['eval_accuracy']:.4f}  loss {last['eval_loss']:.4f}"
            )


def train(
    model: nn.Module,
    *,
    stage: str,
    tokenizer: Tokenizer,
    train_split: Split,
    validation_split: Split,
    training: schema.Training,
    hardware: schema.Hardware,
    seed: int,
    distillation: Distillation | None = None,
) -> Trained:
    """Train in place, with a look at validation after each epoch.

    Goes on from the last checkpoint of a run that was cut off, if params, dependencies and
    code are the same; deletes the checkpoints when done.

    Raises:
        UnavailableError: a GPU is asked for where there is none.
    """
    require_device(hardware)
    cache = None if distillation is None else distillation.cache
    scratch = home() / "scratch" / stage / scratch_key(stage)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    trainer = StudentTrainer(
        model=model,
        args=_arguments(training, hardware, seed, scratch, len(train_split.texts)),
        train_dataset=Rows(encode(tokenizer, train_split.texts), train_split, cache),
        eval_dataset=Rows(encode(tokenizer, validation_split.texts), validation_split, None),
        data_collator=Collator(model.config.pad_token_id, cache),  # type: ignore[union-attr,arg-type]
        compute_metrics=_accuracy,
        callbacks=[Progress(stage)],
        distillation=distillation,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.remove_callback(transformers.ProgressCallback)
    checkpoint = get_last_checkpoint(str(scratch)) if scratch.exists() else None
    start = 0 if checkpoint is None else int(checkpoint.rsplit("-", 1)[1])
    if start:
        say(f"{stage}: resuming from step {start}")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    shutil.rmtree(scratch.parent, ignore_errors=True)
    return Trained(int(result.global_step), start)


def require_device(hardware: schema.Hardware) -> None:
    """Refuse at once what this machine cannot do."""
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "hardware.device: found cuda in params and no GPU on this machine",
            next_command="stillroom compress --set hardware.device=cpu",
        )


def _arguments(
    training: schema.Training, hardware: schema.Hardware, seed: int, scratch: Path, rows: int
) -> TrainingArguments:
    steps = math.ceil(rows / training.batch_size) * training.epochs
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=training.learning_rate,
        warmup_steps=round(steps * training.warmup),
        weight_decay=training.weight_decay,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        bf16=training.precision == "bf16",
        use_cpu=hardware.device == "cpu",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        eval_strategy="epoch",
        logging_strategy="steps",
        logging_steps=20,
        save_strategy="epoch",
        save_total_limit=1,
        dataloader_pin_memory=False,
        seed=seed,
        data_seed=seed,
        report_to=[],
        disable_tqdm=True,
    )


def scratch_key(stage: str, root: Path = Path()) -> str:
    """Hash of what decides a stage's outcome: its params and its dependencies, code included.

    Read from ``dvc.yaml``, so that it can be no list of its own.
    """
    spec = yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["stages"][stage]
    values = yaml.safe_load((root / "params.yaml").read_text("utf-8"))
    digest = hashlib.sha256(stage.encode())
    for name in spec.get("params", []):
        value = values
        for part in name.split("."):
            value = value[part]
        digest.update(json.dumps([name, value], sort_keys=True).encode())
    for dependency in spec.get("deps", []):
        path = root / dependency
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(root)} {file_sha256(file)}".encode())
    return digest.hexdigest()[:16]


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    answers = np.asarray(prediction.predictions).argmax(-1)
    return {"accuracy": float((answers == prediction.label_ids).mean())}


def _curve_point(row: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy")
    return {name: row[name] for name in wanted if name in row}
