"""Means with standard errors over problems, and pass@k. docs/evaluation.md has the formulas and their sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Final

_Z: Final = 1.959964
"""Of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure.

    Attributes:
        value: The estimate; None where there was nothing to average.
        standard_error: Its standard error over problems; None with fewer than two of them.
        num_problems: How many problems it was taken over.
        interval: 95 % interval of a share whose standard error is 0, because all problems agree; see :func:`of_share`.
    """

    value: float | None
    standard_error: float | None
    num_problems: int
    interval: tuple[float, float] | None = None

    def shown(self, digits: int = 3) -> str:
        """``0.250 ± 0.099``; ``0.000 [0.000, 0.161]`` where none of twenty problems was solved."""
        if self.value is None:
            return "-"
        if self.interval is not None:
            low, high = self.interval
            return f"{self.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.{digits}f}"
        return f"{self.value:.{digits}f}{error}"

    def __str__(self) -> str:
        return self.shown()


def mean_over_problems(values_P: Sequence[float]) -> Estimate:
    """The mean of one value per problem. Samples of one problem are not independent, so problems are counted."""
    if not values_P:
        return Estimate(None, None, 0)
    count = len(values_P)
    return Estimate(fmean(values_P), stdev(values_P) / math.sqrt(count) if count > 1 else None, count)


def ratio_over_problems(parts_P: Sequence[float], wholes_P: Sequence[float]) -> Estimate:
    """Sum of parts over sum of wholes, as "of all answers beside a wrong draft, the share that is right".

    The error is that of a ratio of two means over problems, by linearisation (the delta method).
    """
    pairs = [(part, whole) for part, whole in zip(parts_P, wholes_P, strict=True) if whole]
    count, total = len(pairs), sum(whole for _, whole in pairs)
    if not pairs:
        return Estimate(None, None, 0)
    ratio = sum(part for part, _ in pairs) / total
    if count < 2:
        return Estimate(ratio, None, count)
    squares = sum((part - ratio * whole) ** 2 for part, whole in pairs)
    return Estimate(ratio, math.sqrt(squares * count / (count - 1)) / total, count)


def of_share(estimate: Estimate) -> Estimate:
    """The estimate of a share, with an interval where its standard error says nothing.

    That 0 of 20 problems were solved does not show that the share is 0: Wilson's interval of 0 out of 20 ends at 0.161.
    Problems are counted, not samples, which are not independent.
    """
    if estimate.value is None or estimate.standard_error is None or estimate.standard_error > 1e-9:
        return estimate
    return replace(estimate, interval=wilson(estimate.value, estimate.num_problems))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen among ``count`` independent trials (E. B. Wilson 1927)."""
    weight = _Z**2 / count
    center = (share + weight / 2) / (1 + weight)
    reach = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, center - reach), min(1.0, center + reach)


def pass_at(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate of "at least one of k samples is right" from n >= k samples of which c are right.

    Chen et al. 2021 (arXiv 2107.03374), equation 1: 1 - C(n - c, k) / C(n, k). Exact integers, so no overflow.
    """
    if not 0 < k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples with {num_right} right is not defined.")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4 ... up to a number, and that number itself."""
    powers = [1 << exponent for exponent in range(largest.bit_length()) if 1 << exponent <= largest]
    return powers if powers[-1] == largest else [*powers, largest]
