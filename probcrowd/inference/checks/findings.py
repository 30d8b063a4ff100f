"""Findings of checks: a number, its threshold, and what it means in plain words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

Area = Literal["sampling", "model"]  # can the draws be trusted? does the model fit?


@dataclass(frozen=True)
class Finding:
    """One result of a check. passed: None where the number is information without a verdict."""

    name: str
    area: Area
    value: float
    threshold: str
    passed: bool | None
    meaning: str

    def __post_init__(self) -> None:
        # `is False` would miss NumPy booleans
        object.__setattr__(self, "passed", None if self.passed is None else bool(self.passed))
        object.__setattr__(self, "value", float(self.value))

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[self.passed]
        return f"{mark} {self.name}: {self.value:.4g} ({self.threshold}). {self.meaning}"


def verdict(findings: list[Finding]) -> str:
    """Summarise the findings in one sentence."""
    failed = {
        area: [finding.name for finding in findings if finding.area == area and finding.passed is False]
        for area in ("sampling", "model")
    }
    if failed["sampling"]:
        return f"Do not use these draws yet: {'; '.join(failed['sampling'])}."
    if failed["model"]:
        return f"The draws can be trusted, the model not fully: {'; '.join(failed['model'])}."
    return "The draws can be trusted, and the model passes every check."


def exit_status(findings: list[Finding]) -> int:
    """Return 0: all passed; 3: the draws cannot be trusted; 4: the draws can be trusted but the model fails a
    check. (1 and 2: errors, misuse.)
    """
    failed = {finding.area for finding in findings if finding.passed is False}
    return 3 if "sampling" in failed else 4 if failed else 0


def to_json(findings: list[Finding]) -> str:
    """Return the findings with verdict and exit status as JSON; numbers that are not finite become null."""
    rows = [
        asdict(finding) | {"value": finding.value if math.isfinite(finding.value) else None}
        for finding in findings
    ]
    return json.dumps(
        {"verdict": verdict(findings), "exit_status": exit_status(findings), "findings": rows}, indent=1
    )
