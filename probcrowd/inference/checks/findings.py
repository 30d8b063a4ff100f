"""What a check found: a number, the threshold it was held against, and what that means in plain words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

Area = Literal["sampling", "model"]  # can the draws be trusted? is the model they are drawn from adequate?


@dataclass(frozen=True)
class Finding:
    """One verdict. passed: None where the check tells something without judging."""

    name: str
    area: Area
    value: float
    threshold: str
    passed: bool | None
    meaning: str

    def __post_init__(self) -> None:
        # NumPy's truth values are no bools: `is False` would overlook them
        object.__setattr__(self, "passed", None if self.passed is None else bool(self.passed))
        object.__setattr__(self, "value", float(self.value))

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[self.passed]
        return f"{mark} {self.name}: {self.value:.4g} ({self.threshold}). {self.meaning}"


def verdict(findings: list[Finding]) -> str:
    """One plain sentence for all of them."""
    failed = {
        area: [finding.name for finding in findings if finding.area == area and finding.passed is False]
        for area in ("sampling", "model")
    }
    if failed["sampling"]:
        return f"Do not use these draws yet: {'; '.join(failed['sampling'])}."
    if failed["model"]:
        return f"The draws can be trusted, the model not fully: {'; '.join(failed['model'])}."
    return "The draws can be trusted, and no check speaks against the model."


def exit_status(findings: list[Finding]) -> int:
    """0: all passed. 3: the draws cannot be trusted. 4: they can, but a check speaks against the model. (1 and 2 are errors and misuse.)"""
    failed = {finding.area for finding in findings if finding.passed is False}
    return 3 if "sampling" in failed else 4 if failed else 0


def to_json(findings: list[Finding]) -> str:
    """The findings, with the verdict and the exit status; numbers that are not finite become null."""
    rows = [
        asdict(finding) | {"value": finding.value if math.isfinite(finding.value) else None}
        for finding in findings
    ]
    return json.dumps(
        {"verdict": verdict(findings), "exit_status": exit_status(findings), "findings": rows}, indent=1
    )
