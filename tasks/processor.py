"""What this machine's processor can do, as it says itself.

Only the standard library is imported: serving asks, too.
"""

from __future__ import annotations

import platform
from collections.abc import Set
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's features in Linux' words; nothing where no one tells."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text("utf-8", errors="replace").splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(values.split())
    return frozenset({"asimd"}) if platform.machine() in ("arm64", "aarch64") else frozenset()


def native_bf16(flags: Set[str] | None = None) -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated it is a hundred times slower."""
    return bool(BF16 & (cpu_flags() if flags is None else flags))


def saturates(flags: Set[str] | None = None) -> bool:
    """Whether products of unsigned and signed bytes are added in 16 bits: x86 without VNNI."""
    found = cpu_flags() if flags is None else flags
    return "sse2" in found and not VNNI & found
