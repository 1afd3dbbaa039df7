"""Named hardware profiles: what a bundle is built for, and what this machine is.

A profile names what decides how int8 products are made, nothing finer.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from tasks.gpu import gpu_flags
from tasks.processor import cpu_flags


@dataclass(frozen=True)
class Profile:
    """How models are quantised for one kind of machine."""

    name: str
    needs: frozenset[str]
    """Processor flags, all of them."""
    reduce_range: bool = False
    """7-bit weights: products of unsigned and signed bytes are added in 16 bits that saturate."""
    symmetric: bool = False
    """Activations with zero point 0, as TensorRT wants them."""


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("cpu-avx512-vnni", frozenset({"avx512f", "avx512_vnni"})),
        Profile("cpu-avx2-vnni", frozenset({"avx2", "avx_vnni"})),
        Profile("cpu-avx512", frozenset({"avx512f", "avx512bw"}), reduce_range=True),
        Profile("cpu-avx2", frozenset({"avx2"}), reduce_range=True),
        Profile("cpu-arm", frozenset({"asimd"})),
        Profile("gpu-sm80", frozenset({"sm80"}), symmetric=True),
        Profile("gpu-sm90", frozenset({"sm90"}), symmetric=True),
        Profile("gpu-sm100", frozenset({"sm100"}), symmetric=True),
    )
}
"""Best first: a machine is the first one whose needs it meets."""
PLAIN = "cpu"
"""A machine that none of the profiles describes."""


def for_gpu(profile: str) -> bool:
    """Whether a profile is a GPU's."""
    return profile.startswith("gpu-")


def profile_of(flags: Set[str], *, like: str = PLAIN) -> str:
    """The best profile whose needs are met, one of the same kind as `like` first.

    `PLAIN` if none is.
    """
    ordered = sorted(PROFILES.values(), key=lambda p: for_gpu(p.name) is not for_gpu(like))
    return next((p.name for p in ordered if p.needs <= flags), PLAIN)


def detect_profile(like: str = PLAIN) -> str:
    """The profile of this machine: of its processor, or of its GPU if `like` is a GPU's."""
    return profile_of(flags_here(like), like=like)


def flags_here(like: str) -> Set[str]:
    """The processor's flags, and the GPU's where it matters: its driver takes its time."""
    return cpu_flags() | gpu_flags() if for_gpu(like) else cpu_flags()
