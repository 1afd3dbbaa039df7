"""What `evaluation.counterfactual` names: words that ought not to change an answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.errors import DataError

Pair = tuple[str, str]
OURS = "infra/counterfactual.yaml"


class Swaps(BaseModel):
    """The file as `tasks.evaluation.behaviour` reads it."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[Pair] = []
    """Words that are exchanged where they occur."""
    prefixes: dict[str, Annotated[list[Pair], Field(min_length=1)]] = {}
    """By group: put before every text, one of a pair and then the other."""
    scripts: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """By name: sentences in a script that the model was not made for."""

    @field_validator("pairs")
    @classmethod
    def _words(cls, pairs: list[Pair]) -> list[Pair]:
        """Single words, each in one pair: what else would be looked for and never found."""
        seen: set[str] = set()
        for word in (word for pair in pairs for word in pair):
            if not re.fullmatch(r"\w+", word):
                raise ValueError(f"{word!r} is not one word")
            if word.casefold() in seen:
                raise ValueError(f"{word!r} stands there twice")
            seen.add(word.casefold())
        return pairs


def read_swaps(path: Path) -> Swaps:
    """Read and check a list of swaps.

    Raises:
        DataError: it is no YAML, or says something else.
    """
    try:
        return Swaps.model_validate(yaml.safe_load(path.read_text("utf-8")) or {})
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        found = " ".join(str(error).split())[:200]
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    raise DataError(
        f"evaluation.counterfactual: found {found} in {path}, expected pairs, prefixes and "
        f"scripts as in {OURS}",
        next_command=f"stillroom compress --set evaluation.counterfactual={OURS}",
    )
