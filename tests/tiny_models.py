"""Small models of every real architecture, with random weights, as the library builds them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tasks.modeling.architecture import ARCHITECTURES, set_sizes

LAYERS, HEADS, FFN, HIDDEN, PIECES, CLASSES = 3, 4, 24, 32, 50, 5
GROUPED = "llama, grouped queries"
"""Four keys and values, each read by two queries, in heads that are wider than their share."""
KINDS = (*sorted(ARCHITECTURES), GROUPED)


def tiny(kind: str) -> torch.nn.Module:
    """A model of a type in `ARCHITECTURES`, or `GROUPED`; four heads or groups a layer."""
    torch.manual_seed(0)
    arch = ARCHITECTURES[kind.partition(",")[0]]
    config = AutoConfig.for_model(
        arch.model_type, vocab_size=PIECES, max_position_embeddings=40, num_labels=CLASSES,
        pad_token_id=int(arch.positions_after_padding), initializer_range=0.2,
    )  # fmt: skip
    set_sizes(config, layers=LAYERS, hidden=HIDDEN, heads=HEADS, ffn=FFN)
    if kind == GROUPED:
        config.num_attention_heads, config.head_dim = 2 * HEADS, HIDDEN // HEADS
    config.use_cache = False
    config._attn_implementation = "eager"
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():  # biases and norms that are not zero and one, so that mistakes show
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def texts(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of nine pieces, the second one shorter and padded."""
    ids = torch.randint(5, PIECES, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = model.config.pad_token_id, 0
    return ids, mask


def answer(model: torch.nn.Module) -> torch.Tensor:
    """Logits of the three texts."""
    ids, mask = texts(model)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits


END = 1
"""The piece that ends a text of `decoder`."""
WORDS = ("card", "rate", ":", "my", "the", "is", "lost", "late", "high", "low", "was", "top", "up")
"""Pieces of `decoder` from 2 on."""


def decoder(folder: Path) -> Path:
    """Save a Llama that writes, with a tokenizer of whole words, as a hub has them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=2 + len(WORDS), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.5, eos_token_id=END, bos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    pieces = {piece: i for i, piece in enumerate(["[UNK]", "[END]", *WORDS])}
    made = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(3)  # a file may say so; it is not what is meant here
    made.save(str(folder / "tokenizer.json"))
    return folder
