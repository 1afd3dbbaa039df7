"""The same teacher through other roads: what each gives in accuracy, bytes and time.

    stillroom compare-peers --recipe headline

Every peer is built and served by its own tools, in an environment of its own where its packages
do not go with ours (``infra/peers/NAME.txt``); each is a process that answers texts and times its
own calls, and all take turns in blocks, as `tasks.evaluation.latency` has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from flows.console import Progress, load_offline_env
from flows.next_command import of_this_run
from flows.workspace import resolve
from tasks import home
from tasks.errors import StillroomError, UnavailableError, UsageError
from tasks.evaluation.peers import OURS, Peer, peers_markdown
from tasks.evaluation.readme import section, write_section
from tasks.params import load
from tasks.problems.sampling import spread
from tasks.release.naming import model_name
from tasks.tracking import count_opening

SCRIPTS = home.CHECKOUT / "infra" / "peers"
PEERS = {
    OURS: "stillroom",
    "onnxruntime-fp32": "onnxruntime_fp32",
    "onnxruntime-int8": "onnxruntime_int8",
    "olive-int8": "olive_int8",
    "nncf-openvino-int8": "nncf_int8",
    "model2vec": "model2vec_static",
}
"""By the name in the table, the script that builds and serves it."""
SPLITS = ("test", "validation")
BLOCK = 32
"""Calls that one makes before the next has its turn: infra/decisions/latency-in-blocks.md."""
CHUNK = 256
WARMUP = 16


def place(recipe: str | None) -> str:
    """The section of a page that the table goes to: each recipe's own."""
    return f"peers-{recipe}" if recipe else "peers"


def run(
    workspace: Path | None = None,
    *,
    recipe: str | None = None,
    peers: Sequence[str] = (),
    split: str = "test",
    write: Path | None = None,
    as_json: bool = False,
) -> int:
    """What ``stillroom compare-peers`` does.

    Args:
        workspace: a finished run; None for the recipe's, or the checkout.

    Raises:
        UsageError: an unknown peer or split, a recipe beside a workspace, no finished run, or a
            page without markers.
        ParamsError: an unknown recipe.
        UnavailableError: ours fails; or a peer does, or its environment cannot be made, once the
            others' rows are printed and written.
    """
    unknown = [name for name in peers if name not in PEERS]
    if unknown or split not in SPLITS:
        raise UsageError(
            f"compare-peers: found {(unknown or [split])[0]!r}, expected one of "
            f"{', '.join(PEERS if unknown else SPLITS)}",
            next_command="stillroom compare-peers --help",
        )
    if recipe and workspace is not None:
        raise UsageError(
            "compare-peers: found --recipe and --workspace, expected one of them",
            next_command=f"stillroom compare-peers --recipe {recipe}",
        )
    root = workspace or resolve(recipe).path
    if write is not None:
        section(write, place(recipe))
    load_offline_env()  # mlflow reads it at import
    progress = Progress(to_stderr=as_json)
    names = [name for name in PEERS if not peers or name in (OURS, *peers)]
    room = Room.of(root, split, recipe)
    if split == "test":
        count_opening(model_name(room.params), "compare-peers")
    found, lost = measure(room, names, progress)
    rows = [peer.row(room.labels) for peer in found]
    page = peers_markdown(rows, split, len(room.texts), missing=list(lost))
    if write is not None:
        write_section(write, place(recipe), page)
    print(json.dumps({"rows": rows}, ensure_ascii=False) if as_json else page, flush=True)
    if lost:
        raise next(iter(lost.values()))
    return 0


@dataclass(frozen=True)
class Room:
    """A finished run, and the texts that all are asked."""

    root: Path
    params: Any
    texts: list[str]
    labels: np.ndarray

    @classmethod
    def of(cls, root: Path, split: str, recipe: str | None = None) -> Room:
        """Of a workspace or checkout.

        Args:
            recipe: what makes such a run, for who has none.

        Raises:
            UsageError: it holds no finished run.
        """
        models = ("baseline", "teacher_servable", "quantize")
        needed = [*(root / "data/models" / name for name in models),
                  root / f"data/prepared/{split}.parquet"]  # fmt: skip
        for path in needed:
            if not path.exists():
                raise UsageError(
                    f"{path}: found nothing, expected a finished run",
                    next_command=of_this_run("stillroom compress", recipe),
                )
        table = pq.read_table(root / f"data/prepared/{split}.parquet")
        return cls(root, load(root / "params.yaml"), table["text"].to_pylist(),
                   table["label"].to_numpy())  # fmt: skip

    def lay(self, name: str) -> Path:
        """A folder with what a peer is built from; what an earlier comparison left is gone."""
        folder = home.home() / "peers" / "work" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for link, source in (("teacher", "baseline"), ("servable", "teacher_servable"),
                             ("candidate", "quantize")):  # fmt: skip
            (folder / link).symlink_to((self.root / "data/models" / source).resolve())
        train = pq.read_table(self.root / "data/prepared/train.parquet")
        rows = zip(train["text"].to_pylist(), train["label"].to_pylist(), strict=True)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder


def measure(
    room: Room, wanted: Sequence[str], progress: Progress
) -> tuple[list[Peer], dict[str, StillroomError]]:
    """Build all, ask all everything, then time them in turn; and those that failed before that."""
    with contextlib.ExitStack() as stack:
        children: dict[str, Child] = {}
        logits: dict[str, np.ndarray] = {}
        lost: dict[str, StillroomError] = {}
        for name in wanted:
            try:
                children[name] = stack.enter_context(child(name, room, progress))
                progress.note(f"{name}: answers {len(room.texts)} texts")
                logits[name] = answers(children[name], room.texts)
            except StillroomError as error:
                if name == OURS:
                    raise
                children.pop(name, None)
                lost[name] = error
                progress.note(f"{name}: left out: {error}")
        names = list(children)
        config = room.params.evaluation
        timed = spread(room.texts, config.latency_texts)
        progress.note(f"latency on {len(timed)} texts, {config.latency_rounds} rounds, in turn")
        times: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for one in children.values():
            one.ask(timed[:WARMUP])
        for turn in range(config.latency_rounds):
            for start in range(0, len(timed), BLOCK):
                shift = (turn + start // BLOCK) % len(names)
                for name in (*names[shift:], *names[:shift]):
                    times[name].append(children[name].ask(timed[start : start + BLOCK])[1])
        return [Peer(name, logits[name], children[name].file_bytes, np.concatenate(times[name]))
                for name in names], lost  # fmt: skip


def answers(one: Child, texts: Sequence[str]) -> np.ndarray:
    """Logits ``[texts, classes]``, asked for in chunks."""
    return np.concatenate([one.ask(texts[i : i + CHUNK])[0] for i in range(0, len(texts), CHUNK)])


class Child:
    """A peer's process.

    Raises:
        UnavailableError: it ended, or said what is no answer.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], room: Path) -> None:
        self._name, self._process, self._room = name, process, room
        self._read()

    def ask(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Logits ``[texts, classes]`` and the ms of each text."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"texts": list(texts)}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise failed(self._name, self._room) from None
        answer = self._read()
        return np.array(answer["logits"], dtype=np.float64), np.array(answer["ms"])

    @property
    def file_bytes(self) -> int:
        """Of its artifact, but for pages that people read."""
        files = [p for p in (self._room / "artifact").rglob("*") if p.is_file()]
        return sum(file.stat().st_size for file in files if file.suffix != ".md")

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            return dict(json.loads(line))
        except ValueError:
            raise failed(self._name, self._room) from None


@contextlib.contextmanager
def child(name: str, room: Room, progress: Progress) -> Iterator[Child]:
    """A peer, built and listening; ends with the block."""
    folder, script = room.lay(name), PEERS[name]
    python = environment(script, progress)
    progress.note(f"{name}: building")
    command = [str(python), str(SCRIPTS / f"{script}.py")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
           "OLIVE_DISABLE_TELEMETRY": "1",
           "PYTHONPATH": str(home.CHECKOUT)}  # fmt: skip
    with (folder / "log").open("wb") as log:
        built = subprocess.run([*command, "build", str(folder)], env=env, stdout=log, stderr=log,
                               check=False)  # fmt: skip
        if built.returncode:
            raise failed(name, folder)
        process = subprocess.Popen(
            [*command, "serve", str(folder)],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield Child(name, process, folder)
    finally:
        process.kill()
        process.communicate()


def environment(script: str, progress: Progress) -> Path:
    """The interpreter of a peer: ours, or one with what ``infra/peers/NAME.txt`` pins.

    Raises:
        UnavailableError: it cannot be made.
    """
    pins = SCRIPTS / f"{script}.txt"
    if not pins.is_file():
        return Path(sys.executable)
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    place = home.home() / "peers" / f"{script}-{digest}"
    python = place / "bin" / "python"
    if (place / "ready").exists():
        return python
    progress.note(f"{script}: installing {pins.name} into {place} (a few minutes, once)")
    shutil.rmtree(place, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    for command in ([sys.executable, "-m", "venv", str(place)], [*pip, "-r", str(pins)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise UnavailableError(
                f"{pins.name}: cannot be installed ({said[0]})",
                next_command=f"stillroom compare-peers --peer {_other(script)}",
            )
    (place / "ready").touch()
    return python


def failed(name: str, folder: Path) -> StillroomError:
    """What a peer that did not answer said last."""
    log = folder / "log"
    said = (
        log.read_text("utf-8", errors="replace").strip().splitlines()[-1:] if log.exists() else []
    )
    return UnavailableError(
        f"{name}: found no answer ({(said or ['it said nothing'])[0]}); its log is {log}",
        next_command=f"tail {log}",
    )


def _other(script: str) -> str:
    """A peer that needs no environment of its own."""
    ours = (script, PEERS[OURS])
    return next(
        name
        for name, one in PEERS.items()
        if one not in ours and not (SCRIPTS / f"{one}.txt").is_file()
    )
