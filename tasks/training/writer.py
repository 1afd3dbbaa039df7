"""A small decoder that writes further texts of each class, for the teacher to label.

It is fine-tuned on the training texts, each behind the name of its class, and then goes on from
the name alone as often as is asked: Kumar et al. 2020, "Data Augmentation using Pre-trained
Transformer Models", section 3.2. What it writes has no label but the teacher's: a text that
misses its class teaches as much as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer

from tasks import schema
from tasks.errors import DataError
from tasks.modeling.checkpoint import set_dropout
from tasks.problems.augmentation import Seen
from tasks.problems.classification import Split, pad
from tasks.stage import say
from tasks.training.trainer import arguments, scratch, to_the_end, trains_in_bf16

CANDIDATES = 200
"""Pieces that are drawn from at most, so that no step sorts the vocabulary."""
AT_A_TIME = 24_000
"""Pieces that are drawn side by side at most: keys and values of SmolLM2 take 0.5 GB for them."""
LEAVE = 32
"""Ended texts leave in such numbers: a processor's kernels are made anew for every other size."""
IGNORED = -100
"""Label of a piece that is not learned: `transformers` leaves it out of the loss."""


@dataclass(frozen=True)
class Writer:
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    begin: list[int]
    """Pieces that stand before everything, where the model was trained with such."""
    end: int
    """The piece that ends a text; it also fills up short ones, behind the mask."""

    def prompts(self, labels: Sequence[str]) -> list[list[int]]:
        """Pieces that a text of each class is written behind."""
        return [self.begin + ids for ids in pieces(self.tokenizer, list(map(prompt, labels)))]


def read_writer(folder: Path) -> Writer:
    """Load ``config.json``, ``model.safetensors``, ``tokenizer.json``, or a GGUF file alone.

    GGUF weights are expanded to fp32.

    Raises:
        DataError: they are no causal language model that can go on from its keys and values,
            a weight is missing, or no piece ends a text.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    packed = next((path.name for path in folder.glob("*.gguf")), None)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=packed, dtype=torch.float32, output_loading_info=True
        )
        model, found = loaded
        if found["missing_keys"]:
            raise ValueError(f"no {sorted(found['missing_keys'])[0]} among its weights")
        if packed:
            model = unpacked(model)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=packed).backend_tokenizer
        else:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        end = model.config.get_text_config().eos_token_id
        end = end[0] if isinstance(end, list) else end
        if end is None or not 0 <= end < tokenizer.get_vocab_size():
            raise ValueError(f"eos_token_id is {end}, no piece that could end a text")
        writer = Writer(model, tokenizer, [i for i in tokenizer.encode("").ids if i != end], end)
        go_on(model.eval(), end)
    except Exception as error:  # whatever a broken file makes of the libraries below
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"teach.writer: {folder} cannot be loaded ({type(error).__name__}: {reason}), expected "
            "a causal language model that keeps keys and values",
            next_command="stillroom compress --set teach.writer.source=package",
        ) from error
    return writer


@torch.inference_mode()
def go_on(model: Any, piece: int) -> None:
    """What `continuations` does at each step, once: an encoder keeps no keys and values."""
    output = model(input_ids=torch.tensor([[piece]]), use_cache=True)
    output.past_key_values.reorder_cache(torch.tensor([0, 0]))
    model(input_ids=torch.tensor([[piece], [piece]]), past_key_values=output.past_key_values)


def unpacked(model: Any) -> Any:
    """The same weights in a model that knows nothing of GGUF and can therefore be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain


def prompt(label: str) -> str:
    """What a text of a class is written behind: ``Refund_not_showing_up`` in words."""
    return " ".join(label.replace("_", " ").split()).lower() + ":"


class Lines:
    """Training texts behind the names of their classes, as pieces; names are not learned.

    Args:
        longest: pieces of a text at most; the rest is cut off, and then it has no end.
    """

    def __init__(
        self, writer: Writer, labels: Sequence[str], split: Split, *, longest: int
    ) -> None:
        texts = [f" {' '.join(text.split())}" for text in split.texts]
        self._prompts = writer.prompts(labels)
        self._texts = pieces(writer.tokenizer, texts)
        self._labels, self._end, self._longest = split.labels, writer.end, longest

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        before = self._prompts[self._labels[index]]
        text = [*self._texts[index], self._end][: self._longest]
        return {"input_ids": [*before, *text], "labels": [IGNORED] * len(before) + text}

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """A batch, filled up on the right."""
        ids, mask = pad([row["input_ids"] for row in rows], self._end)
        labels, _ = pad([row["labels"] for row in rows], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special pieces."""
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in found]


def fine_tune(
    writer: Writer,
    *,
    train: Lines,
    validation: Lines,
    training: schema.Training,
    hardware: schema.Hardware,
    seed: int,
) -> dict[str, Any]:
    """Train in place to write the training texts, embeddings frozen.

    Goes on from the last epoch of a run of stage ``teach`` that was cut off.

    Returns:
        ``steps`` and ``validation_loss``, nats a piece as `Trainer` averages batches.
    """
    model = writer.model
    set_dropout(model, training.dropout)
    model.get_input_embeddings().requires_grad_(False)  # and what is tied to them
    room = scratch("teach") / "writer"
    args = arguments(training, hardware, seed, room, len(train), best="loss")
    args.per_device_eval_batch_size = training.batch_size  # logits of a whole vocabulary
    args.prediction_loss_only = True
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=train.collate,
        callbacks=[Told()],
    )
    to_the_end(trainer, training.patience, name="teach: writer")
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    losses = losses or [trainer.evaluate()["eval_loss"]]
    loss = min(losses) if training.patience else losses[-1]
    return {"steps": trainer.state.global_step, "validation_loss": float(loss)}


class Told(transformers.TrainerCallback):
    """Says where training stands."""

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.log_history[-1]
        if "loss" in last or "eval_loss" in last:
            of = "validation loss" if "eval_loss" in last else "loss"
            loss = last.get("eval_loss", last.get("loss"))
            say(f"teach: writer, step {state.global_step}/{state.max_steps}  {of} {loss:.3f}")


def write(
    writer: Writer,
    labels: Sequence[str],
    known: Seen,
    config: schema.Writer,
    *,
    hardware: schema.Hardware,
    longest: int,
    seed: int,
) -> Iterator[str]:
    """At most ``config.texts`` texts of each class, none of them `known` or there before.

    Args:
        known: texts that are left out; what is written is added.
        longest: pieces; a text that has no end by then is left out.
        seed: each class has a stream of its own.
    """
    dtype = torch.bfloat16 if trains_in_bf16(config.training, hardware) else torch.float32
    model = writer.model.eval()
    model.to(dtype)
    prompts = writer.prompts(labels)
    for index, begun in enumerate(prompts):
        draws = torch.Generator(model.device).manual_seed(seed * len(prompts) + index)
        for count in even(config.texts, max(1, AT_A_TIME // longest)):
            for text in continuations(model, begun, count, end=writer.end, top_p=config.top_p,
                                      longest=longest, draws=draws):  # fmt: skip
                written = " ".join(writer.tokenizer.decode(text).split())
                if written and known.add(written):
                    yield written
        say(f"teach: writer, {index + 1}/{len(labels)} classes")


def even(count: int, most: int) -> list[int]:
    """The fewest parts of at most `most`, as even as can be."""
    parts = math.ceil(count / most)
    return [count // parts + (part < count % parts) for part in range(parts)]


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    begun: Sequence[int],
    count: int,
    *,
    end: int,
    top_p: float,
    longest: int,
    draws: torch.Generator,
) -> list[list[int]]:
    """Draw `count` texts at a time that go on from the same pieces, by nucleus sampling.

    `GenerationMixin.generate` computes a finished text until the last of its batch is finished;
    here they leave the batch (`LEAVE`), so that few are computed further.

    Returns:
        Those that ended within `longest` pieces, without their end.
    """
    texts: list[list[int]] = [[] for _ in range(count)]
    rows, ended = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    output = model(input_ids=torch.tensor([list(begun)], device=model.device), use_cache=True)
    cache, logits = output.past_key_values, output.logits[:, -1].expand(count, -1)
    cache.reorder_cache(torch.zeros(count, dtype=torch.long))  # what they have in common, once
    for _ in range(longest):
        drawn = nucleus(logits.float(), top_p, draws)
        ended |= drawn.cpu() == end
        for row, piece, over in zip(rows.tolist(), drawn.tolist(), ended.tolist(), strict=True):
            if not over:
                texts[row].append(piece)
        going = int((~ended).sum())
        if not going:
            break
        fewer = math.ceil(going / LEAVE) * LEAVE
        if fewer < len(rows):
            left = ended.argsort(stable=True)[:fewer]
            cache.reorder_cache(left)
            drawn, rows, ended = drawn[left.to(drawn.device)], rows[left], ended[left]
        output = model(input_ids=drawn[:, None], past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]
    unended = set(rows[~ended].tolist())
    return [text for row, text in enumerate(texts) if row not in unended]


def nucleus(logits: torch.Tensor, top_p: float, draws: torch.Generator) -> torch.Tensor:
    """One piece a row, drawn from the smallest set of likeliest ones that have `top_p` together.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1; the set
    has at most `CANDIDATES` pieces.

    Args:
        logits: ``[rows, pieces]`` float32.

    Returns:
        ``[rows]`` int64.
    """
    values, found = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1)
    shares = (values - logits.logsumexp(-1, keepdim=True)).exp()
    before = shares.cumsum(-1) - shares
    before[:, 0] = 0.0
    kept = shares.masked_fill(before >= top_p, 0.0)
    return found.gather(-1, torch.multinomial(kept, 1, generator=draws))[:, 0]
