"""Ask the teacher once: cache its logits for every training text.

    python -m tasks.teach
    dvc repro teach

Students read the cache, so the teacher's forward pass is paid once, not once an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.modeling.checkpoint import load_checkpoint
from tasks.params import Params
from tasks.paths import TEACHER, TEACHER_LOGITS, TRAIN
from tasks.problems.classification import logits_of, read_labels, read_split, read_tokenizer
from tasks.stage import Metrics, run, say
from tasks.training import logit_cache


def main(params: Params) -> Metrics:
    teacher = load_checkpoint(TEACHER)
    tokenizer = read_tokenizer(TEACHER, params.data.max_length)
    labels = read_labels(TEACHER / "labels.json")
    train = read_split(TRAIN)

    def ask(texts: Sequence[str]) -> np.ndarray:
        return logits_of(teacher, tokenizer, texts)

    texts = logit_cache.write(
        TEACHER_LOGITS, train.texts, len(labels), ask,
        progress=lambda done, total: say(f"teach: {done}/{total} texts"),
    )  # fmt: skip
    cache = logit_cache.LogitCache(TEACHER_LOGITS)
    agreement = cache.rows(cache.find(train.texts)).argmax(-1) == train.labels
    return {"texts": texts, "train_accuracy": float(agreement.mean())}


if __name__ == "__main__":
    run("teach", main)
