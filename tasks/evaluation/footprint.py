"""What a model takes: bytes on disk, memory, floating-point operations."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

STATUS = Path("/proc/self/status")


def folder_bytes(folder: Path, names: Iterable[str]) -> int:
    """Size of the named files of a folder together; a missing one raises FileNotFoundError."""
    return sum((folder / name).stat().st_size for name in names)


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far.

    On Linux from ``VmHWM``, which begins anew at exec; `getrusage` would start at the
    parent's size.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def flops(forward: Callable[[], object]) -> int:
    """Floating-point operations of one call of a PyTorch model, a multiply-add as two.

    As `torch.utils.flop_counter` counts: matrix products and attention, no element-wise work.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())


def linear_flops(nonzeros: float, classes: int) -> int:
    """Floating-point operations of a sparse row times a dense matrix, a multiply-add as two."""
    return round(2 * nonzeros * classes)
