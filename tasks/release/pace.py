"""Whether a version may become champion at the speed that it has on this host.

    found = compare(candidate, champion)        about a second a model, no lock held
    judged = judge(found, against=3, limit=1.5)
    judged.require("banking77", 4)

Candidate and champion answer the same texts in turn, a block of calls at a time: one thread,
batch 1, text in, label out. The ratio of a block is the candidate's p50 in it over the
champion's p50 in the block beside it, so that what else the machine does hits both. What is
held to the limit is the lower quartile of these ratios: only when three blocks out of four say
that the candidate is too slow is it refused (`infra/decisions/promotion-and-latency.md`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from tasks.errors import GateRefused, IntegrityError, UnavailableError
from tasks.evaluation import latency
from tasks.evaluation.latency import PairedRatio
from tasks.hardware import detect_profile
from tasks.release.packaging import SMOKE_TEXT
from tasks.release.servable import Servable

BLOCK = 16
"""Texts, and calls that one model makes before the other has its turn."""
FEWEST, MOST = 5, 40
"""Blocks of each model."""
SECONDS = 1.0
"""What the timed calls of the slower model may take together, unless its fewest take longer."""
SHORTEST = 4
"""Words of the shortest text."""
DECIMALS = 9
"""In which a ratio is compared with its limit."""

Outcome = Literal["within", "unclear", "beyond", "no limit", "not compared"]


@dataclass(frozen=True)
class Timing:
    """One model from text to label, in ms a call."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Pace:
    """What was measured on this host."""

    candidate: Timing
    champion: Timing | None
    """None where there is none, or none that loads."""
    ratio: PairedRatio | None
    """Candidate's time over the champion's, over pairs of adjacent blocks."""
    calls: int
    """Timed calls of each model."""
    profile: str
    """What the candidate was built for."""
    machine_profile: str
    """What this machine is."""


@dataclass(frozen=True)
class Judged:
    """A pace beside the limit that it is held to."""

    pace: Pace
    against: int | None
    """The champion's version."""
    limit: float | None
    """Largest ratio; None where none is set."""

    @property
    def outcome(self) -> Outcome:
        """Whether the candidate is quick enough."""
        return decide(self.pace.ratio, self.limit)

    def require(self, name: str, version: int, *, yes: bool = False) -> None:
        """Return unless the candidate is beyond its limit.

        Args:
            name: the registered model.
            version: the candidate.
            yes: it was withdrawn, and is brought back.

        Raises:
            GateRefused: says what was found, what the limit is, and how to accept it this once.
        """
        ratio = self.pace.ratio
        if self.outcome != "beyond" or ratio is None:
            return
        enough = math.ceil(ratio.median * 10) / 10
        raise GateRefused(
            f"{name} version {version}: found {ratio.median:.2f} times the time of version "
            f"{self.against} from text to label on this machine ({_spread(ratio)}), "
            f"expected at most {self.limit:g} "
            "(promotion.max_slowdown, as registered with the version or given here); "
            f"version {self.against} stays champion",
            next_command=f"stillroom promote --model {name} --version {version} "
            f"--max-slowdown {enough:g}{' --yes' if yes else ''}  # accepts it, this once",
        )

    def sentence(self) -> str:
        """For people."""
        p50 = f"p50 {self.pace.candidate.p50:.3g} ms from text to label here"
        ratio = self.pace.ratio
        if ratio is None:
            missing = "no champion" if self.against is None else f"version {self.against} not sound"
            return f"{p50}; {missing}, so nothing to compare with"
        limit = "no limit" if self.limit is None else f"at most {self.limit:g}"
        doubt = ", not clearly beyond it" if self.outcome == "unclear" else ""
        return (
            f"{p50}, {ratio.median:.2f} times version {self.against}'s "
            f"({_spread(ratio)}; {limit}{doubt})"
        )

    def as_dict(self) -> dict[str, Any]:
        """The member ``pace`` of ``stillroom promote --json`` and of the log."""
        found, ratio = self.pace, self.pace.ratio
        return {
            "outcome": self.outcome,
            "against": self.against,
            "limit": self.limit,
            "ratio": None if ratio is None else _rounded(vars(ratio)),
            "candidate_ms": _rounded(vars(found.candidate)),
            "champion_ms": None if found.champion is None else _rounded(vars(found.champion)),
            "calls": found.calls,
            "profile": found.profile,
            "machine_profile": found.machine_profile,
        }


# --- decisions -------------------------------------------------------------------------


def decide(ratio: PairedRatio | None, limit: float | None) -> Outcome:
    """Hold a ratio and its spread to a limit.

    ``beyond`` only when the lower quartile is over the limit; ``unclear`` when the median is
    and the lower quartile is not: a neighbour's noise does not refuse a sound model. What is
    not a number is within nothing.
    """
    if ratio is None:
        return "not compared"
    if limit is None:
        return "no limit"
    if not round(ratio.q1, DECIMALS) <= limit:
        return "beyond"
    return "within" if round(ratio.median, DECIMALS) <= limit else "unclear"


def block_ratio(candidate: np.ndarray, champion: np.ndarray) -> PairedRatio:
    """Quartiles of the blocks' ratios of p50, from times ``[blocks, calls]`` of each."""
    ratios = np.median(candidate, axis=1) / np.median(champion, axis=1)
    q1, median, q3 = np.percentile(ratios, [25, 50, 75])
    return PairedRatio(float(median), float(q1), float(q3))


def blocks_for(block_s: float, seconds: float = SECONDS) -> int:
    """How many blocks of `block_s` seconds to time, from `FEWEST` to `MOST`."""
    return int(max(FEWEST, min(MOST, seconds / max(block_s, 1e-9))))


def recorded_limit(text: str | None) -> float | None:
    """The limit that the registry keeps with a version; None for none, and for 0.

    Raises:
        IntegrityError: what is kept is no such number.
    """
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit >= 0):
        raise IntegrityError(
            f"max_slowdown: found {text!r} in the registry, expected a number from 0",
            next_command="stillroom compress  # registers the same bytes with the limit of today",
        )
    return limit or None


def limit_of(release: Mapping[str, Any]) -> str | None:
    """The limit in a ``release.json`` as the registry keeps it; None where there is none."""
    limit = (release.get("promotion") or {}).get("max_slowdown")
    return None if limit is None else json.dumps(limit)


# --- texts -----------------------------------------------------------------------------


def texts(words: Sequence[str], longest: int) -> list[str]:
    """`BLOCK` texts, always the same for the same words, from `SHORTEST` to `longest` words.

    Their lengths rise by a constant factor: half are under the geometric mean of both ends.
    """
    longest = max(1, longest)
    lengths = np.geomspace(min(SHORTEST, longest), longest, BLOCK).round().astype(int)
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=length)) for length in lengths.tolist()]


def words_of(pieces: Set[str]) -> set[str]:
    """The pieces of a vocabulary that are words of letters alone, without their marks."""
    marked = {piece for piece in pieces if piece[:1] in ("Ġ", "▁")}
    starts = marked or {piece for piece in pieces if not piece.startswith("##")}
    return {word for piece in starts if (word := piece.lstrip("Ġ▁")).isalpha()}


def _common_words(folders: Sequence[Path]) -> list[str]:
    """Words that are one piece to every tokenizer, else to the first, else a plain sentence's.

    A vocabulary is cut to the words of its data: on other texts a model would be timed at
    splitting words that it is never asked about.
    """
    known = [_words_in(folder / "tokenizer.json") for folder in folders]
    return sorted(set.intersection(*known)) or sorted(known[0]) or SMOKE_TEXT.split()


def _words_in(file: Path) -> set[str]:
    return words_of(set(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=False)))


# --- measuring -------------------------------------------------------------------------


def compare(candidate: Path, champion: Path | None) -> Pace:
    """Time two bundles in turn on this host, or one alone.

    Args:
        candidate: a bundle's folder.
        champion: the other's; one that does not load is left out.

    Raises:
        IntegrityError: the candidate does not load.
    """
    with ExitStack() as stack:
        models = {"candidate": stack.enter_context(closing(Servable(candidate, threads=1)))}
        folders = [candidate]
        if champion is not None and (reference := _opened(champion)) is not None:
            models["champion"] = stack.enter_context(closing(reference))
            folders.append(champion)
        longest = min(int(model.serving["max_length"]) for model in models.values()) - 2
        times = _timed(models, texts(_common_words(folders), longest))
        profile = str(models["candidate"].serving.get("profile"))
    reference_times = times.get("champion")
    return Pace(
        candidate=_timing(times["candidate"]),
        champion=None if reference_times is None else _timing(reference_times),
        ratio=None if reference_times is None else block_ratio(times["candidate"], reference_times),
        calls=times["candidate"].size,
        profile=profile,
        machine_profile=detect_profile(),
    )


def judge(pace: Pace, *, against: int | None, limit: float | None) -> Judged:
    """A pace beside its limit; 0 is none."""
    return Judged(pace=pace, against=against, limit=limit or None)


def _opened(folder: Path) -> Servable | None:
    try:
        return Servable(folder, threads=1)
    except (IntegrityError, UnavailableError):
        return None


def _timed(models: Mapping[str, Servable], asked: Sequence[str]) -> dict[str, np.ndarray]:
    """Times ``[blocks, calls]`` in ms of each model; the first block of all is a rehearsal."""
    answerers = {name: latency.answerer(model) for name, model in models.items()}
    first = latency.measure(answerers, asked, rounds=1, batches=[1], warmup=4, block=BLOCK)
    slowest_s = max(float(times[1].sum()) for times in first.timings.values()) / 1e3
    found = latency.measure(
        answerers, asked, rounds=blocks_for(slowest_s), batches=[1], warmup=1, block=BLOCK
    )
    return {name: times[1] for name, times in found.timings.items()}


def _timing(times: np.ndarray) -> Timing:
    p50, p95 = np.percentile(times, [50, 95])
    return Timing(float(p50), float(p95))


def _spread(ratio: PairedRatio) -> str:
    return f"{ratio.q1:.2f} to {ratio.q3:.2f} in half of the blocks"


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
