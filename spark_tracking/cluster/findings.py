"""What the doctor tells: findings, and the report that they make."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from spark_tracking.masking import masked

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its level (`ok`, `warning`, `error`), what it is about in a word or two, what was found and by which
    rule, and what to do, or ''. What looks like a secret is masked.
    """

    level: str
    subject: str
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        for name in ("text", "fix"):
            object.__setattr__(self, name, masked(getattr(self, name)))

    def __str__(self) -> str:
        line = f"{self.level:8} {self.subject:14} {self.text}"
        return f"{line}\n{'':8} {'':14} -> {self.fix}" if self.fix else line


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which they were made.

    Example:
        >>> print(spark_tracking.doctor())                               # doctest: +SKIP
    """

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != ERROR for finding in self.findings)

    def to_json(self) -> str:
        """`{"healthy": …, "findings": [{"level", "subject", "text", "fix"}, …]}`."""
        return json.dumps({"healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}, indent=2)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    __repr__ = __str__
