"""The rollback as a flow, so that it stands in Prefect beside the runs.

    prefect deployment run rollback/rollback --param reason='wrong answers since noon'

The move itself is `tasks.release.registry.rollback`; `stillroom rollback` makes it with
no Prefect at all, in two seconds.
"""
# ruff: noqa: E402

from __future__ import annotations

from typing import Any

from flows.console import load_offline_env

load_offline_env()  # prefect and mlflow read their environment at import

from prefect import flow

from flows.promote import account, default_model, report
from tasks.release import registry


@flow(name="rollback", retries=0)
def rollback(reason: str, to: int | None = None, model: str | None = None) -> dict[str, Any]:
    """Make the champion before this one champion again, and withdraw this one.

    Args:
        reason: for the log.
        to: another earlier champion.
        model: registered model; that of the checkout's params.yaml when not given.
    """
    move = registry.rollback(model or default_model(), reason=reason, to=to, who=account())
    report(move.as_dict())
    return move.as_dict()
