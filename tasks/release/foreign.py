"""A bundle on another kind of machine than it was built for."""

from __future__ import annotations

from collections.abc import Set

from tasks.hardware import PROFILES, flags_here, profile_of


def foreign(profile: str, flags: Set[str] | None = None) -> str | None:
    """What to say where a bundle of this profile is served here; None where it is at home.

    It answers alike; the speed that it was gated with is another machine's.
    """
    flags = flags_here(profile) if flags is None else flags
    if profile not in PROFILES or PROFILES[profile].needs <= flags:
        return None
    here = profile_of(flags, like=profile)
    return (
        f"built for {profile}, this machine is {here}: it answers alike, its speed is not what "
        "was measured"
    )
