"""How long an answer takes: text in, label out, tokenisation included.

Models are timed interleaved, the same texts in the same batches, so that whatever else the
machine does hits them alike; a speed is a ratio within one run.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np

from tasks.errors import UnavailableError
from tasks.release.servable import Servable

LEAST_TEXTS = 64
"""Answered in each cell of a grid: of a few calls a percentile says nothing."""
WARMUP = 8
"""Untimed calls of each model in a short comparison."""


class Answerer(Protocol):
    """A model as its user sees it."""

    def __call__(self, texts: list[str], /) -> list[str]:
        """The label of each text."""
        ...


@dataclass(frozen=True)
class LatencyRow:
    """One model at one batch size; times in ms per call, throughput in texts per second."""

    p50: float
    p95: float
    p99: float
    throughput_per_s: float


@dataclass(frozen=True)
class PairedRatio:
    """How many times longer one model takes than another, over pairs of adjacent calls."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Latency:
    """Every single timing: ``timings[name][batch]`` is ``[rounds, calls]`` in ms."""

    timings: Mapping[str, Mapping[int, np.ndarray]]

    @property
    def rows(self) -> dict[str, dict[int, LatencyRow]]:
        """Percentiles over all single timings, by name and batch size."""
        return {
            name: {batch: _row(times, batch) for batch, times in by_batch.items()}
            for name, by_batch in self.timings.items()
        }

    def paired_ratio(self, a: str, b: str, *, batch: int = 1) -> PairedRatio:
        """Time of ``a`` over time of ``b`` on the same texts of the same round."""
        ratios = self.timings[a][batch] / self.timings[b][batch]
        q1, median, q3 = np.percentile(ratios, [25, 50, 75])
        return PairedRatio(float(median), float(q1), float(q3))


@dataclass(frozen=True)
class ColdStart:
    """A fresh interpreter that loads a model and answers one text."""

    ms: float
    """Median wall time from spawn to exit."""
    peak_memory_bytes: int
    """Largest resident set of any repeat."""


def measure(
    answerers: Mapping[str, Answerer],
    texts: Sequence[str],
    *,
    rounds: int,
    batches: Sequence[int],
    warmup: int,
    block: int = 32,
) -> Latency:
    """Time every answerer on the same texts, in turn, a block of calls at a time.

    The order within a turn rotates, so that no model always runs behind the same neighbour.
    Blocks, because a model that is served answers with its weights in the processor's cache:
    taking turns at every call would have each pay for what its neighbour evicted, a small
    model most of all (`infra/decisions/latency-in-blocks.md`).

    Args:
        answerers: by the name under which results are returned.
        texts: walked through once a round; repeated where a batch is larger, and a last
            incomplete batch is left out.
        rounds: walks per batch size.
        batches: texts per call.
        warmup: untimed calls of each answerer at each batch size.
        block: calls that one answerer makes before the next has its turn.

    Raises:
        ValueError: no answerer, no text, or no round.
    """
    if not answerers or not texts or rounds < 1:
        raise ValueError("expected at least one answerer, one text and one round")
    names = list(answerers)
    timings: dict[str, dict[int, np.ndarray]] = {name: {} for name in names}
    for batch in batches:
        calls = _batches(texts, batch)
        for name in names:
            timings[name][batch] = np.empty((rounds, len(calls)))
            for step in range(warmup):
                answerers[name](calls[step % len(calls)])
        with _no_garbage_collection():
            for turn in range(rounds):
                for start in range(0, len(calls), block):
                    for name in _rotated(names, turn + start // block):
                        answer, times = answerers[name], timings[name][batch][turn]
                        for index in range(start, min(start + block, len(calls))):
                            begin = perf_counter_ns()
                            answer(calls[index])
                            times[index] = (perf_counter_ns() - begin) / 1e6
    return Latency(timings)


def p50_of(folders: Sequence[Path], texts: Sequence[str], *, rounds: int) -> list[float]:
    """Median ms from text to label of servable folders, one thread, batch 1, in turn."""
    servables = {str(folder): Servable(folder, threads=1) for folder in folders}
    answerers = {name: answerer(servable) for name, servable in servables.items()}
    found = measure(answerers, texts, rounds=rounds, batches=[1], warmup=WARMUP)
    for servable in servables.values():
        servable.close()
    return [found.rows[str(folder)][1].p50 for folder in folders]


def answerer(servable: Servable) -> Answerer:
    """A servable folder as `measure` asks it."""

    def answer(texts: list[str], /) -> list[str]:
        return [prediction.label for prediction in servable.predict(texts)]

    return answer


def grid(
    answerers: Mapping[str, Answerer],
    texts_of: Mapping[int, Sequence[str]],
    *,
    batches: Sequence[int],
    threads: int,
    calls: int,
) -> list[dict[str, Any]]:
    """Latency for every length of text and every batch size, all models in turn.

    Args:
        texts_of: texts by their length in word pieces.
        threads: that the models were given; written down.
        calls: timed calls of each model in each cell, more where that is under `LEAST_TEXTS`.
    """
    rows = []
    for pieces, texts in texts_of.items():
        for batch in batches:
            enough = [texts[i % len(texts)] for i in range(max(calls * batch, LEAST_TEXTS))]
            found = measure(answerers, enough, rounds=1, batches=[batch], warmup=2, block=8)
            rows += [{"model": name, "batch": batch, "pieces": pieces, "threads": threads,
                      "p50": row.p50, "p95": row.p95, "p99": row.p99,
                      "texts_per_s": row.throughput_per_s}
                     for name, by_batch in found.rows.items()
                     for row in by_batch.values()]  # fmt: skip
    return rows


def engine_ratio(servable: Servable, texts: Sequence[str], *, rounds: int = 3) -> dict[str, float]:
    """What tokenising and labelling add: p50 from text to label over p50 of the bare engine.

    The engine gets ready token ids; both walk through the same texts, in turn.
    """
    ready = {text: servable.encode([text]) for text in texts}

    def bare(batch: list[str]) -> list[str]:
        servable.run(*ready[batch[0]])
        return batch

    found = measure(
        {"whole": answerer(servable), "engine": bare}, texts, rounds=rounds, batches=[1], warmup=10
    )
    text_to_label, engine = found.rows["whole"][1].p50, found.rows["engine"][1].p50
    return {"text_to_label_p50": text_to_label, "engine_p50": engine,
            "ratio": text_to_label / engine}  # fmt: skip


def cold_start(
    command: Sequence[str], repeats: int, env: Mapping[str, str] | None = None
) -> ColdStart:
    """Run a command from scratch, as often as asked.

    Wall time from spawn to exit, memory from `os.wait4`. A small interpreter stands between:
    on Linux a child's largest resident set starts at its parent's, however large that is.

    Args:
        command: loads a model and answers one text, e.g. `tasks.evaluation.answer_once`.
        repeats: fresh processes.
        env: whole environment of the command; None hands on this process's own.

    Raises:
        UnavailableError: the command failed; its last words are in the message.
    """
    found = [_start_once(list(command), env) for _ in range(repeats)]
    return ColdStart(
        ms=statistics.median(ms for ms, _ in found),
        peak_memory_bytes=max(peak for _, peak in found),
    )


_LAUNCHER = """
import json, os, subprocess, sys, time
begin = time.perf_counter_ns()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
ms = (time.perf_counter_ns() - begin) / 1e6
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps([child.returncode, ms, usage.ru_maxrss * unit]))
"""


def _start_once(command: list[str], env: Mapping[str, str] | None) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", _LAUNCHER, *command],
        env=dict(os.environ if env is None else env),
        capture_output=True,
        text=True,
        check=False,
    )
    code, ms, peak = json.loads(done.stdout) if done.returncode == 0 else (done.returncode, 0, 0)
    if code != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise UnavailableError(
            f"cold start: found exit code {code} of {' '.join(command)}, expected 0; "
            f"it said {said[0]!r}",
            next_command=" ".join(command),
        )
    return float(ms), int(peak)


def _row(times: np.ndarray, batch: int) -> LatencyRow:
    p50, p95, p99 = (float(p) for p in np.percentile(times, [50, 95, 99]))
    return LatencyRow(p50, p95, p99, float(batch * times.size / times.sum() * 1e3))


def _batches(texts: Sequence[str], batch: int) -> list[list[str]]:
    source = list(texts)
    while len(source) < batch:
        source += texts
    return [source[i : i + batch] for i in range(0, len(source) - batch + 1, batch)]


def _rotated(names: list[str], by: int) -> list[str]:
    shift = by % len(names)
    return names[shift:] + names[:shift]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
