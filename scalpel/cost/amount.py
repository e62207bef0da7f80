"""Numbers that know where they come from: each prints the arithmetic that gives it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HALF = 0.5  # mean length of a trace or completion, as a share of the longest allowed: assumed


def number(value: float) -> str:
    """Exact below ten million; above, five significant digits as in 7.2986e9."""
    if float(value).is_integer() and abs(value) < 1e7:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e7:
        return f"{value:.5g}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


@dataclass(frozen=True)
class Amount:
    """A number and the arithmetic that gives it; `binds` is 0 for a sum, 1 for a product, 2 for a plain number."""

    value: float
    text: str
    binds: int = 2

    @classmethod
    def of(cls, value: float | Amount) -> Amount:
        return value if isinstance(value, Amount) else cls(float(value), number(value))

    def _inside(self, level: int) -> str:
        return self.text if self.binds >= level else f"({self.text})"

    def __add__(self, other: float | Amount) -> Amount:
        other = Amount.of(other)
        return Amount(self.value + other.value, f"{self.text} + {other.text}", 0)

    def __mul__(self, other: float | Amount) -> Amount:
        other = Amount.of(other)
        return Amount(self.value * other.value, f"{self._inside(1)} x {other._inside(1)}", 1)

    def __truediv__(self, other: float | Amount) -> Amount:
        other = Amount.of(other)
        return Amount(self.value / other.value, f"{self._inside(1)} / {other._inside(2)}", 1)


def product(*factors: float | Amount) -> Amount:
    """The factors that are not 1, multiplied."""
    found = [Amount.of(factor) for factor in factors]
    found = [factor for factor in found if factor.text != "1"] or [Amount.of(1)]
    total = found[0]
    for factor in found[1:]:
        total = total * factor
    return total


def total(parts: Iterable[Amount]) -> Amount:
    """The sum, equal parts counted instead of repeated."""
    alike: dict[str, list[Amount]] = {}
    for part in parts:
        alike.setdefault(part.text, []).append(part)
    counted = [product(len(found), found[0]) for found in alike.values()] or [Amount.of(0)]
    result = counted[0]
    for part in counted[1:]:
        result = result + part
    return result
