# SPDX-License-Identifier: GPL-2.0-or-later
"""What was measured in turn, as ratios: pairs of one round share what the machine did meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import mean, stdev
from typing import Self

_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Of Student's t, two-sided, 95 %, by the degrees of freedom from 1 on."""
_NORMAL = 1.96


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of pairs' ratios, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, own: Sequence[float], other: Sequence[float]) -> Self:
        logs = [log(one / another) for one, another in zip(own, other, strict=True)]
        freedom = len(logs) - 1
        if freedom == 0:
            return cls(exp(logs[0]), 0.0, float("inf"))
        student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
        half = student * stdev(logs) / sqrt(len(logs))
        return cls(*(exp(mean(logs) + each) for each in (0, -half, half)))

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"
