"""What the moves of a model's champion add up to: pure decisions, no store.

The log is a list of `Entry`, oldest first. Each was an intent before the alias
moved and is done, or void, afterwards. `previous` and `challenger` follow from
the log, the versions and the champion; nothing else remembers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from textwrap import shorten
from typing import Any

from tasks.errors import UsageError

INTENT, DONE, VOID = "intent", "done", "void"
PROMOTE, ROLLBACK, EXTERNAL = "promote", "rollback", "external"
LONGEST_REASON = 160
"""Letters of it that are shown; the log has all."""


@dataclass(frozen=True)
class Version:
    """One registered bundle."""

    number: int
    artifact_sha256: str
    manifest_sha256: str
    registration: int
    """Rises with every registration, also with a repeated one: the highest is the newest."""
    registered_at: str
    withdrawn_at: str | None = None
    withdrawn_reason: str | None = None
    max_slowdown: str | None = None
    """Of `promotion.max_slowdown` when it was registered last; None before there was a limit."""


@dataclass(frozen=True)
class Entry:
    """One line of the log."""

    run_id: str
    kind: str
    """``promote``, ``rollback``, or ``external``: the alias was moved by other means."""
    source: int | None
    target: int | None
    when: str
    who: str
    why: str
    verdict: str
    artifact_sha256: str
    state: str
    """``intent``, ``done`` or ``void``."""
    pace: Mapping[str, Any] | None = None
    """`tasks.release.pace.Judged.as_dict`; None where nothing was measured."""
    skipped: Sequence[int] = ()
    """Of a rollback: later champions than its target, which it withdraws with its source."""

    def as_dict(self) -> dict[str, Any]:
        """A member of ``moves`` in ``stillroom status --history --json``."""
        return {
            "when": self.when,
            "who": self.who,
            "why": self.why,
            "kind": self.kind,
            "from": self.source,
            "to": self.target,
            "verdict": self.verdict,
            "artifact_sha256": self.artifact_sha256,
            "state": self.state,
            "pace": self.pace,
        }


@dataclass(frozen=True)
class Snapshot:
    """All that the registry knows of one model at one moment."""

    champion: int | None
    aliases: Mapping[str, int]
    versions: Mapping[int, Version]
    moves: Sequence[Entry]
    store: str
    """Where MLflow keeps it, for messages."""

    @property
    def newest(self) -> Version | None:
        """The version that was registered last."""
        return max(self.versions.values(), key=lambda v: v.registration, default=None)

    def withdrawn(self, number: int | None) -> bool:
        """Whether a version was taken out; one that is gone counts as such."""
        version = None if number is None else self.versions.get(number)
        return version is None or version.withdrawn_at is not None


@dataclass(frozen=True)
class Registered:
    """What a registration came to."""

    version: int
    created: bool
    """False: these very bytes were registered before."""
    artifact_sha256: str
    withdrawn: bool
    """These bytes were taken out by a rollback: only an explicit promotion brings them back."""


@dataclass(frozen=True)
class Move:
    """What a promotion or a rollback came to."""

    model: str
    kind: str
    """``promote``, ``rollback``, or ``none`` where nothing moved."""
    source: int | None
    """The champion before."""
    target: int | None
    """The champion now."""
    when: str
    who: str
    why: str
    artifact_sha256: str | None
    """The champion's, now."""
    note: str
    """For people."""
    pace: Mapping[str, Any] | None = None
    """`tasks.release.pace.Judged.as_dict`; None where nothing was measured."""

    @property
    def changed(self) -> bool:
        """Whether another version is champion now."""
        return self.kind != "none"

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "model": self.model,
            "kind": self.kind,
            "changed": self.changed,
            "from": self.source,
            "to": self.target,
            "when": self.when,
            "who": self.who,
            "why": self.why,
            "artifact_sha256": self.artifact_sha256,
            "pace": self.pace,
            "note": self.note,
        }


def recorded(moves: Sequence[Entry]) -> int | None:
    """The champion according to the log."""
    return next((move.target for move in reversed(moves) if move.state == DONE), None)


def champions(moves: Sequence[Entry]) -> list[int]:
    """Versions in the order in which they became champion, with repeats."""
    done = [move for move in moves if move.state == DONE]
    first = [done[0].source] if done else []
    return [number for number in first + [move.target for move in done] if number is not None]


def fallbacks(state: Snapshot) -> list[int]:
    """Earlier champions that are not withdrawn, the latest first, each once."""
    earlier = (n for n in reversed(champions(state.moves)) if n != state.champion)
    return [n for n in dict.fromkeys(earlier) if not state.withdrawn(n)]


def skipped(state: Snapshot, target: int) -> list[int]:
    """Later champions than the target of a rollback that are not withdrawn, the latest first."""
    return list(takewhile(lambda number: number != target, fallbacks(state)))


def previous(state: Snapshot) -> int | None:
    """Where a rollback goes."""
    return next(iter(fallbacks(state)), None)


def challenger(state: Snapshot) -> int | None:
    """The newest version, if it was registered after the champion and is not withdrawn."""
    champion = state.versions.get(state.champion) if state.champion is not None else None
    since = -1 if champion is None else champion.registration
    later = [
        version
        for version in state.versions.values()
        if version.registration > since and version.withdrawn_at is None
    ]
    return max(later, key=lambda v: v.registration).number if later else None


def since(state: Snapshot, number: int) -> str | None:
    """When a version last became champion."""
    times = [move.when for move in state.moves if move.state == DONE and move.target == number]
    return times[-1] if times else None


def to_promote(state: Snapshot, name: str, *, version: int | None, yes: bool) -> int | None:
    """The version to promote: the champion itself when nothing newer is registered; None when all
    that there is to promote is withdrawn.

    Raises:
        UsageError: nothing is registered, no such version, or a withdrawn one without `yes`.
    """
    if version is not None:
        _require(state, name, version)
        if state.withdrawn(version) and version != state.champion and not yes:
            taken_out = state.versions[version]
            raise UsageError(
                f"{name} version {version}: found withdrawn at {taken_out.withdrawn_at} "
                f"({taken_out.withdrawn_reason}), expected --yes with it",
                next_command=f"stillroom promote --model {name} --version {version} --yes",
            )
        return version
    target = challenger(state)
    if target is not None:
        return target
    if state.newest is not None and state.newest.withdrawn_at is not None:
        return None
    if state.champion is not None:
        return state.champion
    raise UsageError(
        f"{name}: found no version to promote, expected one in {state.store}",
        next_command="stillroom compress --promote",
    )


def to_restore(state: Snapshot, name: str, to: int | None) -> int:
    """The version that a rollback makes champion again.

    Raises:
        UsageError: no champion, nothing to go back to, or `to` is no earlier champion.
    """
    log = f"stillroom status --model {name} --history"
    if state.champion is None:
        raise UsageError(
            f"{name}: found no champion in {state.store}, expected one to roll back from",
            next_command="stillroom status",
        )
    target = previous(state) if to is None else to
    if target is None:
        raise UsageError(
            f"{name}: found no earlier champion that is not withdrawn, expected one to go back to",
            next_command=log,
        )
    _require(state, name, target)
    if target == state.champion:
        raise UsageError(
            f"--to: found {target}, which is the champion, expected an earlier one",
            next_command=log,
        )
    if target not in fallbacks(state):
        withdrawn = state.withdrawn(target)
        raise UsageError(
            f"--to: found version {target}, which was {'withdrawn' if withdrawn else 'no champion'}"
            ", expected an earlier champion",
            next_command=f"stillroom promote --model {name} --version {target}"
            + (" --yes" if withdrawn else ""),
        )
    return target


def unmoved(
    state: Snapshot, name: str, target: int | None, *, when: str, who: str, why: str
) -> Move:
    """The outcome of a promotion of the champion, or of a withdrawn version (no target)."""
    note = f"{name}: version {target} is champion already, nothing moved"
    if target is None and state.newest is not None:
        newest = state.newest
        note = (
            f"{name}: version {newest.number} was withdrawn at {newest.withdrawn_at} "
            f"({newest.withdrawn_reason}), nothing moved; to bring it back: "
            f"stillroom promote --model {name} --version {newest.number} --yes"
        )
    champion = None if state.champion is None else state.versions.get(state.champion)
    return Move(
        model=name,
        kind="none",
        source=state.champion,
        target=state.champion,
        when=when,
        who=who,
        why=why,
        artifact_sha256=None if champion is None else champion.artifact_sha256,
        note=note,
    )


def describe(name: str, state: Snapshot, *, moves: bool) -> dict[str, Any]:
    """What ``stillroom status --json`` prints; with `moves` the log, oldest first."""

    def one(number: int | None, *, registered: bool = False) -> dict[str, Any] | None:
        version = None if number is None else state.versions.get(number)
        if version is None:
            return None
        return {
            "version": version.number,
            "artifact_sha256": version.artifact_sha256,
            "since": version.registered_at
            if registered
            else since(state, version.number) or version.registered_at,
        }

    described: dict[str, Any] = {
        "model": name,
        "champion": one(state.champion),
        "previous": one(previous(state)),
        "challenger": one(challenger(state), registered=True),
    }
    if moves:
        described["moves"] = [move.as_dict() for move in state.moves]
    return described


def _require(state: Snapshot, name: str, version: int) -> None:
    if version not in state.versions:
        known = ", ".join(str(number) for number in sorted(state.versions)) or "none"
        raise UsageError(
            f"{name}: found no version {version}, expected one of: {known}",
            next_command=f"stillroom status --model {name} --history",
        )


def spoken(found: Mapping[str, Any]) -> str:
    """What `describe` found, for people: a line for each role, then one for each move."""
    lines = [f"model       {found['model']}"]
    for role in ("champion", "previous", "challenger"):
        one = found[role]
        facts = "none"
        if one is not None:
            facts = f"version {one['version']}  {one['artifact_sha256'][:12]}  {one['since']}"
        lines.append(f"{role:<12}{facts}")
    for move in found.get("moves", []):
        path = f"{move['from'] or '-'} to {move['to'] or '-'}"
        state = "" if move["state"] == "done" else f"  [{move['state']}]"
        why = f"  {_one_line(move['why'])}" if move["why"] else ""
        lines.append(f"{move['when']}  {move['kind']:<9}{path:<9}{move['who']}{why}{state}")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """Somebody's words without what would move the cursor or fill the terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return shorten(plain, LONGEST_REASON, placeholder=" …")
