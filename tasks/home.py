"""Where local state lives: MLflow's store, Prefect's home, workspaces, scratch, locks."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def home() -> Path:
    """``$STILLROOM_HOME``, or ``var/`` of the checkout that this code was installed from."""
    return Path(os.environ.get("STILLROOM_HOME") or CHECKOUT / "var").resolve()


def tracking_uri() -> str:
    """MLflow's store: ``$MLFLOW_TRACKING_URI``, or the sqlite file in `home`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"
