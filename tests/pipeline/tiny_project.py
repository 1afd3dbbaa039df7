"""A checkout in miniature: the ten stages' file protocol, with nothing behind it.

A stage sleeps when ``TINY_SLEEP`` names it (in a child of its own, so that a test can
look for orphans), fails with a recorded error when ``TINY_FAIL`` does, and ``validate``
refuses when ``gate.max_drop`` is under 1.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

from tasks.home import CHECKOUT

STAGES = ("fetch", "prepare", "baseline", "teach", "distill", "prune", "finetune", "quantize",
          "validate", "deploy")  # fmt: skip
PARAMS = {"distill": "distill.temperature", "prune": "prune.ffn_keep", "validate": "gate"}
PLOTTED = ("baseline", "distill", "finetune", "quantize")

STAGE = """
import json, os, pathlib, subprocess, sys, time
import yaml

name = sys.argv[1]
started = time.time()
params = yaml.safe_load(open("params.yaml"))
metrics = pathlib.Path("metrics"); metrics.mkdir(exist_ok=True)
out = pathlib.Path("data/models") / name; out.mkdir(parents=True, exist_ok=True)
print(f"{name}: at work", flush=True)
if os.environ.get("TINY_SLEEP") == name:
    child = subprocess.Popen(["sleep", "300"])
    pathlib.Path(os.environ["TINY_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    child.wait()
if os.environ.get("TINY_FAIL") == name:
    error = {"kind": "DataError", "exit_code": 2, "message": "data.train: found nothing",
             "next_command": "ls"}
    (metrics / f"{name}.error.json").write_text(json.dumps(error))
    sys.exit(2)
if name in ("baseline", "distill", "finetune"):
    rows = []
    for step in range(1, 4):
        rows.append({"step": step, "epoch": step / 3, "loss": 1 / step, "learning_rate": 1e-3})
        (metrics / f"{name}.history.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in rows))
        time.sleep(0.05)
if name == "quantize":  # it did not train
    (metrics / "quantize.history.jsonl").touch()
if name == "prepare":
    import pyarrow, pyarrow.parquet
    for split in ("train", "test"):
        table = pyarrow.table({"text": ["a", "b"], "label": [0, 1]})
        pyarrow.parquet.write_table(table, f"data/models/prepare/{split}.parquet")
    pathlib.Path("data/prepared").mkdir(exist_ok=True)
    pyarrow.parquet.write_table(table, "data/prepared/train.parquet")
passed = True
if name == "validate":
    limit = params["gate"]["max_drop"]
    passed = limit >= 1
    checks = [{"metric": "drop", "kind": "max", "value": 0.75, "limit": limit, "passed": passed},
              {"metric": "bytes", "kind": "max", "value": 9, "limit": 10, "passed": True}]
    gate = {"passed": passed, "checks": checks, "artifact_sha256": "0" * 64, "detectable_drop": 1.0}
    (metrics / "gate.json").write_text(json.dumps(gate))
if name == "deploy":
    assert json.loads((metrics / "gate.json").read_text())["passed"]
(out / "model").write_text(name + str(params["distill"]["temperature"]))
numbers = {"stage": name, "accuracy": 0.5, "n": {"test": 7}}
(metrics / f"{name}.json").write_text(json.dumps(numbers))
(metrics / f"{name}.runtime.json").write_text(json.dumps({
    "stage": name, "started_at": "2026-01-01T00:00:00+00:00", "work_s": time.time() - started,
    "startup_s": 0.1}))
"""


def build(folder: Path) -> Path:
    """Write the checkout, as a git repository with one commit."""
    folder.mkdir(parents=True)
    (folder / "stage.py").write_text(STAGE)
    shutil.copy(CHECKOUT / "params.yaml", folder / "params.yaml")
    (folder / "infra" / "recipes").mkdir(parents=True)
    (folder / "infra" / "recipes" / "small.yaml").write_text("prune: {ffn_keep: 0.25}\n")
    shutil.copy(CHECKOUT / "infra" / "offline.env", folder / "infra" / "offline.env")
    (folder / "data" / "own").mkdir(parents=True)
    (folder / "data" / "own" / "train").write_text("")
    (folder / ".gitignore").write_text(
        "/var/\n/data/models\n/data/prepared\n/metrics/*.error.json\n__pycache__/\n"
    )
    (folder / ".dvcignore").write_text("/var\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    autostage = false\n"
    )
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": _stages()}, sort_keys=False))
    for command in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "tiny"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def _stages() -> dict[str, dict[str, object]]:
    stages: dict[str, dict[str, object]] = {}
    before: list[str] = []
    for name in STAGES:
        metrics = [f"metrics/{name}.json", f"metrics/{name}.runtime.json"]
        metrics += ["metrics/gate.json"] if name == "validate" else []
        stages[name] = {
            "cmd": f"python stage.py {name}",
            "deps": ["stage.py", *before, *(["metrics/gate.json"] if name == "deploy" else [])],
            "params": [PARAMS.get(name, "seed")],
            "outs": [f"data/models/{name}", *(["data/prepared"] if name == "prepare" else [])],
            # not among outs: there, `cache: false` takes a stage out of the run cache
            "metrics": [{path: {"cache": False}} for path in metrics],
        }
        if name in PLOTTED:
            stages[name]["plots"] = [{f"metrics/{name}.history.jsonl": {"cache": False}}]
        before = [f"data/models/{name}"]
    return stages


DRIVER = """
import json, sys
from pathlib import Path
from tasks import home
home.CHECKOUT = Path(sys.argv[1])
from flows import compress
from tasks.errors import StillroomError
from tasks.release import registry
from types import SimpleNamespace
calls = []
def register(bundle, **kw):
    calls.append(kw["run_id"])
    print("REGISTERED", sorted(kw["documents"]), kw["release"]["commit"], file=sys.stderr)
    return SimpleNamespace(version=1, created=True, withdrawn=False)
registry.register = register
registry.promote = lambda *a, **kw: SimpleNamespace(note="PROMOTED")
try:
    arguments = json.loads(sys.argv[2])
    if "promotion" in arguments:
        from flows.retrain import retrain
        print(json.dumps(retrain(**arguments)))
        code = 0
    else:
        code = compress.run(**arguments)
except StillroomError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
except KeyboardInterrupt:
    code = 130
sys.exit(code)
"""
"""`flows.compress.run`, or the flow `retrain`, with a registry that only says it was asked."""
