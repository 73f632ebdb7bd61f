"""What an attack found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Cases tried, and the failures among them, each in one line.

    Attributes:
        cases: how many.
        failures: what happened in those that failed, with what is needed to do it again.
        notes: what else is worth knowing, such as the most memory a case took.
        skipped: why nothing was tried, or "".
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""

    def check(self, is_good: bool, failure: str) -> bool:
        """Note a failure unless all is good; return whether it is."""
        if not is_good:
            self.failures.append(failure)
        return is_good
