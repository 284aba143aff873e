"""What checking a bundle found, group by group."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "note", "drift"]
Group = Literal["files", "build", "packages", "template", "memory", "speed"]
GROUPS: tuple[Group, ...] = ("files", "build", "packages", "template", "memory", "speed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        group: What it is about.
        status: "drift" is what should be mended; a "note" is good to know and changes nothing by itself.
        text: What is so, in words.
        file: Name in the bundle, "" where it is about no file.
        expected: What the bundle says, "" where that is no single value.
        found: What is here instead.
    """

    group: Group
    status: Status
    text: str
    file: str = ""
    expected: str = ""
    found: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """All findings, in the order of the groups.

    Attributes:
        folder: The bundle.
        findings: At least one for each group that was looked at.
    """

    folder: Path
    findings: tuple[Finding, ...]

    def has_drifted(self, *, strict: bool = False) -> bool:
        """Return whether something should be mended; with strict, notes count too."""
        return any(
            finding.status == "drift" or (strict and finding.status == "note") for finding in self.findings
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "bundle": str(self.folder),
            "has_drifted": self.has_drifted(),
            "findings": [asdict(finding) for finding in self.findings],
        }
