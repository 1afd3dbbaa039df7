"""Static embeddings distilled from the teacher (Model2Vec, 256 dimensions), and a linear head."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from child import Answer, keep_beside, main

DIMENSIONS = 256


def build(room: Path) -> None:
    from model2vec.distill import distill_from_model
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(room / "teacher", scratch, dirs_exist_ok=True)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=f"{scratch}/tokenizer.json", unk_token="[UNK]", pad_token="[PAD]",
            cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        )  # fmt: skip
        model = AutoModel.from_pretrained(scratch)
        static = distill_from_model(model, tokenizer, pca_dims=DIMENSIONS)
    static.save_pretrained(str(room / "artifact"))
    rows = [json.loads(line) for line in (room / "train.jsonl").read_text("utf-8").splitlines()]
    head = LogisticRegression(C=10.0, max_iter=2000)
    head.fit(static.encode([row["text"] for row in rows]), [row["label"] for row in rows])
    names = json.loads((room / "servable/labels.json").read_text("utf-8"))
    coef, intercept = head.coef_, head.intercept_
    if len(head.classes_) == 2:  # one row, for the second class
        coef, intercept = np.vstack([-coef, coef]), np.concatenate([-intercept, intercept])
    weights = np.zeros((len(names), coef.shape[1]), np.float32)
    bias = np.full(len(names), -1e9, np.float32)
    weights[head.classes_], bias[head.classes_] = coef, intercept
    np.savez(room / "artifact/head.npz", weights=weights, bias=bias)
    keep_beside(room, "labels.json")


def load(room: Path) -> Answer:
    from model2vec import StaticModel

    static = StaticModel.from_pretrained(str(room / "artifact"))
    head = np.load(room / "artifact/head.npz")
    weights, bias = head["weights"], head["bias"]

    def answer(text: str) -> np.ndarray:
        return np.asarray(weights @ static.encode([text])[0] + bias)

    return answer


if __name__ == "__main__":
    main(build, load)
