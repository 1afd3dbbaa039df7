"""Figures as people read them: units chosen, three significant digits, a dash for none."""

from __future__ import annotations

import math

DASH, MINUS = "–", "\u2212"
SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
ENERGIES = ((1.0, "kWh"), (1e-3, "Wh"), (1e-6, "mWh"), (1e-9, "µWh"))


def known(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def significant(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, thousands separated, never an exponent."""
    if value is None or not known(value):
        return DASH
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def fixed(value: float | None, digits: int) -> str:
    """So many digits after the point."""
    if value is None or not known(value):
        return DASH
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", MINUS)  # no minus zero


def count(value: float | None) -> str:
    """A whole number."""
    return fixed(value, 0)


def percent(share: float | None, digits: int = 2) -> str:
    """A share of one in per cent."""
    return fixed(None if share is None else 100 * share, digits) + (" %" if known(share) else "")


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign, for what may go either way."""
    text = fixed(value, digits)
    return f"+{text}" if known(value) and float(text.replace(MINUS, "-").replace(",", "")) > 0 \
        else text  # fmt: skip


def times(ratio: float | None) -> str:
    """A ratio: ``24.2×``."""
    return f"{fixed(ratio, 1)}×" if known(ratio) else DASH


def size(value: float | None) -> str:
    """Bytes in the unit that fits, decimal."""
    return _scaled(value, SIZES)


def energy(kwh: float | None) -> str:
    """Energy given in kWh in the unit that fits."""
    return _scaled(kwh, ENERGIES)


def milliseconds(value: float | None) -> str:
    """A duration given in ms."""
    return f"{significant(value)} ms" if known(value) else DASH


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    if value is None or not known(value):
        return DASH
    factor, unit = next((u for u in units if abs(value) >= u[0]), units[-1])
    return f"{significant(value / factor)} {unit}"
