"""The stage `teach` on small real models: who is asked what, and what is written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks import teach
from tasks.errors import DataError, GateRefused
from tasks.modeling.checkpoint import load_checkpoint, save_checkpoint
from tasks.params import overlay, parse, read_yaml
from tasks.problems.augmentation import augment
from tasks.problems.classification import logits_of, read_tokenizer
from tasks.schema import Params
from tasks.training import logit_cache
from tests.tiny_models import decoder

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["card", "rate", "top up"]
TEXTS = [f"{a} {b} {c}" for a in ("my", "the") for b in ("card", "rate") for c in ("is", "was")]
UNLABELLED = ["is my rate", "was it the card", "card"]


def tokenizer(words: Sequence[str]) -> str:
    """A WordPiece of whole words, as a file."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made.to_str()


def checkpoint(folder: Path, seed: int, labels: Sequence[str], words: Sequence[str]) -> None:
    """Save a small BERT with random weights as `baseline` saves the teacher."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "bert", vocab_size=4 + len(words), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=64,
        num_labels=len(labels), pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    config._attn_implementation = "eager"
    parent = folder.parent / f"parent of {folder.name}"
    parent.mkdir(parents=True)
    (parent / "labels.json").write_text(json.dumps(list(labels)))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    save_checkpoint(model, folder, parent=parent, step={"stage": "baseline"},
                    tokenizer_json=tokenizer(words))  # fmt: skip


WORDS = ["my", "the", "card", "rate", "is", "was"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in a workspace before the stage, without anything extra."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "data/models/baseline", 0, LABELS, WORDS)
    further()
    prepared()
    return tmp_path


def further(*names: str) -> None:
    """The index of further teachers, as `fetch` leaves it."""
    Path("data/teachers").mkdir(parents=True, exist_ok=True)
    Path("data/teachers/teachers.json").write_text(json.dumps(names))


def prepared(unlabelled: Sequence[str] = ()) -> None:
    """The texts, as `prepare` leaves them; train has one twice."""
    Path("data/prepared").mkdir(parents=True, exist_ok=True)
    texts = [*TEXTS, TEXTS[0]]
    train = pa.table({"text": texts, "label": [i % 3 for i in range(len(texts))]})
    pq.write_table(train, "data/prepared/train.parquet")
    table = pa.table({"text": pa.array(unlabelled, pa.string())})
    pq.write_table(table, "data/prepared/unlabelled.parquet")
    rows = {"text": TEXTS[:5], "label": [0, 1, 2, 0, 1]}
    pq.write_table(pa.table(rows), "data/prepared/validation.parquet")


def settled(precision: str = "fp32", **augmentation: Any) -> Params:
    own = {"teach": {"augment": augmentation}, "teacher": {"training": {"precision": precision}},
           "gate": {"baseline_floor": 0.0}}  # fmt: skip
    return parse(overlay(read_yaml(ROOT / "params.yaml"), own))


def alone(folder: str, texts: Sequence[str]) -> np.ndarray:
    """What one checkpoint answers, asked directly."""
    model = load_checkpoint(Path(folder))
    return logits_of(model, read_tokenizer(Path(folder), 64), texts)


def cached(texts: Sequence[str]) -> np.ndarray:
    cache = logit_cache.LogitCache(Path("data/teacher_logits"))
    return cache.rows(cache.find(texts))


def test_the_training_texts_alone(workspace: Path) -> None:
    metrics = teach.main(settled())
    by_key = sorted(TEXTS, key=logit_cache.key)
    expected = alone("data/models/baseline", by_key).astype(np.float16)
    np.testing.assert_array_equal(np.load("data/teacher_logits/logits.npy"), expected)
    assert list(logit_cache.extra_texts(Path("data/teacher_logits"))) == []

    texts = [*TEXTS, TEXTS[0]]
    logits = torch.tensor(cached(texts))
    right = logits.argmax(-1) == torch.arange(len(texts)) % 3
    assert metrics == {
        "texts": len(TEXTS),
        "unlabelled": 0,
        "written": 0,
        "augmented": 0,
        "dropped_copies": 0,
        "teachers": 1,
        "writer": None,
        "second": None,
        "train_accuracy": pytest.approx(right.double().mean().item()),
        "train_confidence": pytest.approx(logits.softmax(-1).amax(-1).mean().item(), abs=1e-6),
    }


def test_half_precision_is_asked_for_and_near(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teach, "native_bf16", lambda: True)
    teach.main(settled("bf16"))
    exact = alone("data/models/baseline", TEXTS)
    found = cached(TEXTS)
    assert (found != exact.astype(np.float16)).any()
    np.testing.assert_allclose(found, exact, atol=0.1 * np.abs(exact).max())


def test_half_precision_is_left_alone_where_it_would_be_emulated(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teach, "native_bf16", lambda: False)
    teach.main(settled("bf16"))
    exact = alone("data/models/baseline", TEXTS)
    np.testing.assert_array_equal(cached(TEXTS), exact.astype(np.float16))


def test_unlabelled_texts_and_copies_are_asked_too(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(UNLABELLED)
    params = settled(copies=4, drop=0.3, swap=0.3, replace=0.2, splice=0.2)
    metrics = teach.main(params)
    copies = list(augment([*TEXTS, TEXTS[0]], params.teach.augment, seed=params.seed))
    expected = list(dict.fromkeys([*UNLABELLED, *copies]))
    extra = list(logit_cache.extra_texts(Path("data/teacher_logits")))
    assert extra == expected
    assert len(copies) > 10
    np.testing.assert_allclose(cached(extra), alone("data/models/baseline", extra), atol=4e-3)

    augmented = len(expected) - len(UNLABELLED)
    assert metrics["unlabelled"] == len(UNLABELLED)
    assert metrics["augmented"] == augmented
    assert metrics["dropped_copies"] == 4 * (len(TEXTS) + 1) - augmented
    assert metrics["texts"] == len(TEXTS) + len(expected)
    said = f"teach: right on {metrics['train_accuracy']:.1%} of the training texts"
    assert said in capsys.readouterr().out


def test_further_teachers_are_averaged_label_by_label(workspace: Path) -> None:
    order = [2, 0, 1]
    checkpoint(Path("data/teachers/second"), 1, [LABELS[i] for i in order], WORDS[::-1])
    checkpoint(Path("data/teachers/third"), 2, LABELS, [*WORDS, "more"])
    further("second", "third")
    assert teach.main(settled())["teachers"] == 3
    first, third = (alone(f, TEXTS) for f in ("data/models/baseline", "data/teachers/third"))
    second = np.empty_like(first)
    second[:, order] = alone("data/teachers/second", TEXTS)
    np.testing.assert_allclose(cached(TEXTS), (first + second + third) / 3, atol=4e-3)
    assert np.abs(first - second).max() > 0.1


def test_a_further_teacher_below_the_floor_is_not_asked(workspace: Path) -> None:
    checkpoint(Path("data/teachers/weak"), 1, LABELS, WORDS)
    further("weak")
    params = parse(overlay(settled().model_dump(mode="json"), {"gate": {"baseline_floor": 1.0}}))
    with pytest.raises(GateRefused, match=r"gate\.baseline_floor: the teacher weak has accuracy"):
        teach.main(params)
    assert not Path("data/teacher_logits").exists()


@pytest.mark.parametrize("labels", [[*LABELS[:2], "other"], LABELS[:2], [*LABELS, "more"]])
def test_a_teacher_of_other_labels_is_refused(workspace: Path, labels: list[str]) -> None:
    checkpoint(Path("data/teachers/second"), 1, labels, WORDS)
    further("second")
    with pytest.raises(DataError, match=r"^teach\.teachers: second has "):
        teach.main(settled())
    assert not Path("data/teacher_logits").exists()


BRIEF = {"epochs": 2, "learning_rate": 0.01, "precision": "fp32", "batch_size": 4}


def as_in_a_run(workspace: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]) -> Params:
    """What training in the stage needs besides: state, and params and pipeline as files."""
    monkeypatch.setenv("STILLROOM_HOME", str(workspace / "home"))
    plain = {"teacher": {"training": {"precision": "fp32"}}, "hardware": {"threads": 1}}
    content = overlay(overlay(read_yaml(ROOT / "params.yaml"), plain), own)
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    Path("params.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return parse(content)


@pytest.fixture
def with_student(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A student of its own that is to be asked, too."""
    checkpoint(workspace / "made", 3, LABELS, [*WORDS, "more"])
    Path("data/second").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(workspace / "made" / name, Path("data/second") / name)
    own = {
        "teach": {"second": {"enabled": True, "training": BRIEF}},
        "distill": {"student": {"source": "path", "path": "data/second"}},
        "gate": {"baseline_floor": 0.0},
    }
    return as_in_a_run(workspace, monkeypatch, own)


def test_the_students_own_model_is_fine_tuned_and_asked_as_well(with_student: Params) -> None:
    metrics = teach.main(with_student)
    assert metrics["teachers"] == 2
    assert metrics["second"]["steps"] == 6  # nine texts in batches of four, twice
    assert not list(Path("home").rglob("checkpoint-*")), "what could be resumed is forgotten"
    curve = Path("metrics/teach.history.jsonl").read_text("utf-8").splitlines()
    assert json.loads(curve[-1])["step"] == 6

    student, again = teach.fine_tune_second(with_student, LABELS)
    assert again == metrics["second"]
    mine = logits_of(student.model, student.tokenizer, TEXTS)
    first = alone("data/models/baseline", TEXTS)
    np.testing.assert_allclose(cached(TEXTS), (first + mine) / 2, atol=4e-3)
    assert np.abs(first - mine).max() > 0.1
    right = mine[:5].argmax(-1) == [0, 1, 2, 0, 1]
    assert again["validation"]["accuracy"] == right.mean()


def test_a_student_that_was_fine_tuned_is_not_trained_again(
    with_student: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as before:
        before.setattr(logit_cache, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            teach.main(with_student)
    capsys.readouterr()
    resumed = teach.main(with_student)
    assert "teach: resuming from step 6" in capsys.readouterr().out
    logits = cached(TEXTS)
    assert teach.main(with_student) == resumed
    np.testing.assert_array_equal(cached(TEXTS), logits)


def test_a_student_that_is_the_model_of_a_run_is_refused(with_student: Params) -> None:
    Path("data/second/surgery.json").write_text("{}")
    with pytest.raises(DataError, match=r"^teach\.second\.enabled: .* of an earlier run"):
        teach.main(with_student)
    assert not Path("data/teacher_logits").exists()


@pytest.fixture
def with_writer(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A decoder that is to write texts."""
    decoder(Path("data/writer"))
    prepared(UNLABELLED)
    own = {
        "teach": {
            "writer": {"enabled": True, "texts": 40, "training": BRIEF},
            "augment": {"copies": 1},
        },
    }
    return as_in_a_run(workspace, monkeypatch, own)


def test_a_decoder_writes_texts_that_the_teacher_labels(with_writer: Params) -> None:
    metrics = teach.main(with_writer)
    extra = list(logit_cache.extra_texts(Path("data/teacher_logits")))
    written = extra[len(UNLABELLED) : len(UNLABELLED) + metrics["written"]]
    assert extra[: len(UNLABELLED)] == UNLABELLED
    assert 20 < metrics["written"] <= metrics["writer"]["asked"] == 3 * 40
    assert metrics["writer"]["steps"] == 6
    assert not {text.casefold() for text in written} & {*TEXTS, *UNLABELLED}
    copies = list(augment([*TEXTS, TEXTS[0]], with_writer.teach.augment, seed=with_writer.seed))
    assert extra[len(UNLABELLED) + len(written) :] == [t for t in copies if t not in set(written)]
    expected = alone("data/models/baseline", written)
    np.testing.assert_allclose(cached(written), expected, atol=4e-3)
    assert not list(Path("home").rglob("checkpoint-*")), "what could be resumed is forgotten"
    assert teach.main(with_writer) == metrics
    assert list(logit_cache.extra_texts(Path("data/teacher_logits"))) == extra


def test_a_second_teacher_has_the_floor_of_the_first(with_student: Params) -> None:
    high = {"gate": {"baseline_floor": 1.0}, "teach": {"second": {"training": {"epochs": 0.1}}}}
    params = parse(overlay(with_student.model_dump(mode="json"), high))
    with pytest.raises(GateRefused, match=r"gate\.baseline_floor: the second teacher has accuracy"):
        teach.main(params)
