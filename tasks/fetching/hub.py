"""Files of a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tasks import schema
from tasks.errors import UnavailableError


def hub_snapshot(hub: schema.Hub, kind: str, folder: Path, patterns: Iterable[str]) -> None:
    """Download files of a hub repository.

    Args:
        kind: ``model`` or ``dataset``.
        patterns: of the names of the files.

    Raises:
        UnavailableError: no such repository or revision, or no network.
    """
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False  # the user asked for the hub
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            hub.id,
            repo_type=kind,
            revision=hub.revision or None,
            local_dir=folder,
            allow_patterns=list(patterns),
            etag_timeout=10,
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UnavailableError(
            f"hub {kind} {hub.id!r}: could not be fetched ({type(error).__name__}: {reason})",
            next_command="check the id and the network, or use source=files / source=path",
        ) from error
