"""One training run on Hugging Face `Trainer`, resumable, for teacher and student alike.

`Trainer` owns the loop, mixed precision, checkpoints and the distributed case; this module
gives it batches, the objective and a place to resume from.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from accelerate.utils import extract_model_from_parallel
from filelock import FileLock, Timeout
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from tasks import schema
from tasks.errors import UnavailableError
from tasks.files import file_sha256
from tasks.home import home
from tasks.problems.classification import Pieces, encode, pad, read_class_indices
from tasks.processor import native_bf16
from tasks.stage import say, write_history
from tasks.training.logit_cache import stored_texts

ABANDONED_S = 7 * 24 * 3600
"""A run that was cut off and not taken up again for so long is not resumed any more."""


@dataclass(frozen=True)
class Trained:
    """What a finished run has to say of itself."""

    steps: int
    resumed_from: int
    """A step, 0 if nothing was resumed. It decides nothing, so it is no metric of the model."""
    curve: list[dict[str, Any]]
    """Every logged step, those of the stage's earlier runs first."""


class Objective(nn.Module):
    """What a batch is worth: cross-entropy with its labels.

    `tasks.training.distillation` has the teacher's. It may need more of a row than its pieces
    (`row`), more of a batch (`collate`), and parameters of its own, which are trained along
    with the model and then forgotten.
    """

    def row(self, index: int) -> dict[str, Any]:
        """What a training row carries besides ``input_ids`` and ``labels``."""
        return {}

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What a batch has besides ``input_ids``, ``attention_mask`` and ``labels``."""
        return {}

    def forward(
        self, model: nn.Module, batch: dict[str, torch.Tensor], progress: float
    ) -> tuple[torch.Tensor, Any]:
        """The loss and the model's output; `progress` is the share of the steps done."""
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return nn.functional.cross_entropy(output.logits.float(), batch["labels"]), output


class Rows(Dataset[dict[str, Any]]):
    """Encoded texts with their label and what the objective adds; the texts are not kept."""

    def __init__(self, ids: Pieces, labels: np.ndarray, objective: Objective | None = None) -> None:
        self._ids, self._labels = ids, labels
        self.objective = Objective() if objective is None else objective

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"input_ids": self._ids[index], "labels": int(self._labels[index])}
        return {**row, **self.objective.row(index)}


def read_rows(path: Path, tokenizer: Tokenizer) -> Rows:
    """A prepared split to learn from by its labels alone, or to be looked at."""
    return Rows(encode(tokenizer, stored_texts(path)), read_class_indices(path))


class Collator:
    """Pads a batch and brings what the objective needs for it."""

    def __init__(self, pad_id: int, objective: Objective) -> None:
        self._pad_id, self._objective = pad_id, objective

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row["input_ids"] for row in rows], self._pad_id)
        labels = torch.tensor([row["labels"] for row in rows])
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {**batch, **self._objective.collate(rows)}


class ObjectiveTrainer(Trainer):
    """`Trainer` with an objective; validation is always plain cross-entropy."""

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._objective, self._plain = objective, Objective()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        objective = self._objective if model.training else self._plain
        progress = self.state.global_step / max(self.state.max_steps, 1)
        loss, outputs = objective(model, inputs, progress)
        return (loss, outputs) if return_outputs else loss


class Progress(TrainerCallback):
    """Says where training stands, and keeps the curve in ``metrics/<stage>.history.jsonl``."""

    def __init__(self, stage: str, part: str, before: Sequence[Mapping[str, Any]]) -> None:
        self._stage, self._part = stage, part
        self._before = [dict(row) for row in before]
        self.curve = self._before

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        first = self._before[-1]["step"] if self._before else 0
        points = [_curve_point(row) for row in state.log_history]
        self.curve = [*self._before, *({**row, "step": row["step"] + first} for row in points)]
        write_history(self._stage, self.curve)
        last = state.log_history[-1]
        if "eval_accuracy" in last:
            part = f" {self._part}" if self._part else ""
            say(
                f"{self._stage}{part}: epoch {last['epoch']:.0f}/"
                f"{math.ceil(args.num_train_epochs)}  "
                f"validation accuracy {last['eval_accuracy']:.4f}  loss {last['eval_loss']:.4f}"
            )


def train(
    model: nn.Module,
    *,
    stage: str,
    rows: Rows,
    validation: Rows,
    training: schema.Training,
    hardware: schema.Hardware,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
    part: str = "",
    curve: Sequence[Mapping[str, Any]] = (),
) -> Trained:
    """Train in place, with a look at validation after each epoch.

    Goes on from the last checkpoint of a run that was cut off, if params, dependencies and
    code are the same. Checkpoints stay until the stage calls `discard_checkpoints`, so that
    one of several runs passes over what is done.

    Args:
        rows: to learn from, by the objective that they carry.
        callbacks: of `transformers`, told of every step.
        part: names one of several runs within a stage.
        curve: of the runs before this one in the stage; this one's goes on from there.

    Raises:
        UnavailableError: a GPU is asked for where there is none.
    """
    require_device(hardware)
    if training.epochs == 0:
        write_history(stage, curve)
        return Trained(0, 0, [dict(row) for row in curve])
    objective = rows.objective
    room = scratch(stage) / (part or "run")
    if learned := any(True for _ in objective.parameters()):
        model.add_module("objective", objective)  # so that it is optimised and resumed, too
    progress = Progress(stage, part, curve)
    trainer = ObjectiveTrainer(
        model=model,
        args=arguments(training, hardware, seed, room, len(rows)),
        train_dataset=rows,
        eval_dataset=validation,
        data_collator=Collator(model.config.pad_token_id, objective),  # type: ignore[union-attr,arg-type]
        compute_metrics=_accuracy,
        callbacks=[progress, *callbacks],
        objective=objective,
    )
    if training.precision == "bf16" and not trains_in_bf16(training, hardware):
        say(f"{stage}: this processor has no bfloat16 products: training in fp32")
    start = to_the_end(trainer, training.patience, name=stage)
    # out of autocast: what follows asks and exports the weights that are saved
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    if learned:
        del model.objective
    return Trained(trainer.state.global_step, start, progress.curve)


def to_the_end(trainer: Trainer, patience: int, *, name: str) -> int:
    """Train, on from the last checkpoint of a run that was cut off.

    Args:
        patience: epochs without a better one before it stops; 0: never.
        name: what is trained, for whoever watches.

    Returns:
        The step it went on from, 0 if there was none.
    """
    transformers.utils.logging.disable_progress_bar()
    if patience:
        trainer.add_callback(EarlyStoppingCallback(patience))
    trainer.remove_callback(transformers.PrinterCallback)
    room = Path(str(trainer.args.output_dir))
    checkpoint = get_last_checkpoint(str(room)) if room.exists() else None
    start = 0 if checkpoint is None else int(checkpoint.rsplit("-", 1)[1])
    if start:
        say(f"{name}: resuming from step {start}")
    if trainer.args.num_train_epochs:
        trainer.train(resume_from_checkpoint=checkpoint)
    return start


def scratch(stage: str) -> Path:
    """Where a stage keeps what a run that was cut off goes on from, this process's own.

    Another workspace with the same params may be training the same stage right now; what it
    works in is passed over.
    """
    place = (home(), Path.cwd(), stage)
    if place not in _rooms:
        _rooms[place] = claim(home() / "scratch" / stage / scratch_key(stage))
    return _rooms[place][0]


_rooms: dict[tuple[Path, Path, str], tuple[Path, FileLock]] = {}
"""By state folder, workspace and stage: found once, since files may change while it trains."""


def claim(room: Path) -> tuple[Path, FileLock]:
    """A folder, or the first one beside it that no process holds, and the lock that holds it."""
    for number in itertools.count():
        found = room.with_name(f"{room.name}-{number}") if number else room
        found.mkdir(parents=True, exist_ok=True)
        lock = FileLock(found / ".lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return found, lock
    raise AssertionError


def discard_checkpoints(stage: str) -> None:
    """Forget where this run could be resumed from, and what others left long ago."""
    own = scratch(stage)
    shutil.rmtree(own, ignore_errors=True)
    _, lock = _rooms.pop((home(), Path.cwd(), stage))
    lock.release()
    for room in own.parent.glob("*"):
        if time.time() - last_touched(room) > ABANDONED_S:
            shutil.rmtree(room, ignore_errors=True)


def last_touched(folder: Path) -> float:
    """When anything in a folder last changed; infinite for one that is being removed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return math.inf


def require_device(hardware: schema.Hardware) -> None:
    """Refuse at once what this machine cannot do."""
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "hardware.device: found cuda in params and no GPU on this machine",
            next_command="stillroom compress --set hardware.device=cpu",
        )


def trains_in_bf16(training: schema.Training, hardware: schema.Hardware) -> bool:
    """Whether autocast is used: asked for, and nothing that this machine has to emulate."""
    if training.precision != "bf16":
        return False
    return torch.cuda.is_bf16_supported() if hardware.device == "cuda" else native_bf16()


def arguments(
    training: schema.Training,
    hardware: schema.Hardware,
    seed: int,
    room: Path,
    rows: int,
    *,
    best: str = "accuracy",
) -> TrainingArguments:
    """What `Trainer` is told, whatever it trains.

    Args:
        room: for its checkpoints.
        rows: of the training split.
        best: what the epochs are compared by where patience is asked for.
    """
    steps = math.ceil(rows / training.batch_size) * training.epochs
    return TrainingArguments(
        output_dir=str(room),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=training.learning_rate,
        warmup_steps=round(steps * training.warmup),
        weight_decay=training.weight_decay,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        bf16=trains_in_bf16(training, hardware),
        use_cpu=hardware.device == "cpu",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        eval_strategy="epoch",
        logging_strategy="steps",
        logging_steps=20,
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=training.patience > 0,
        restore_callback_states_from_checkpoint=True,  # patience is counted on
        metric_for_best_model=best if training.patience else None,  # else it keeps that epoch
        dataloader_pin_memory=False,
        seed=seed,
        data_seed=seed,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
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
