"""What NVIDIA GPUs this machine has, as their driver says. Standard library only."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache


@cache
def gpus() -> tuple[tuple[str, str], ...]:
    """Name and compute capability of each, as in ``("NVIDIA H100", "9.0")``."""
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.rpartition(",") for line in done.stdout.splitlines() if "," in line)
    return tuple((name.strip(), capability.strip()) for name, _, capability in rows)


def gpu_flags() -> frozenset[str]:
    """Beside the processor's flags: ``sm90`` for compute capability 9.0."""
    return frozenset("sm" + capability.replace(".", "") for _, capability in gpus())
