"""A bundle on another kind of machine than it was built for."""

from __future__ import annotations

from collections.abc import Set

from tasks.hardware import PROFILES, profile_of
from tasks.processor import cpu_flags


def foreign(profile: str, flags: Set[str] | None = None) -> str | None:
    """What to say where a bundle of this profile is served here; None where it is at home.

    It answers alike; the speed that it was gated with is another machine's.
    """
    found = cpu_flags() if flags is None else flags
    if profile not in PROFILES or PROFILES[profile].needs <= found:
        return None
    return (
        f"built for {profile}, this machine is {profile_of(found)}: it answers alike, "
        "its speed is not what was measured"
    )
