"""Learning-rate rewinding."""

from __future__ import annotations

from tasks import schema


def rewound(original: schema.Training, recovery: schema.Training) -> schema.Training:
    """`recovery` at the rates that `original` had in its last so many epochs.

    The schedule is linear to zero, so its last ``e`` of ``E`` epochs are a linear schedule of
    ``e`` epochs that begins at ``e / E`` of the peak, without warm-up (Renda, Frankle and
    Carbin 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", section 3).
    A recovery that is longer than the original begins at the original's peak.
    """
    decay = original.epochs * (1.0 - original.warmup)
    share = min(recovery.epochs / decay, 1.0) if decay else 1.0  # it never came down
    return recovery.model_copy(
        update={"learning_rate": original.learning_rate * share, "warmup": 0.0}
    )
