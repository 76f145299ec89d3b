"""What fell: kept as lines of JSON with what is needed to repeat it, counted for the table."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """A trial in which something went wrong."""

    trial: str
    seed: int
    file: str
    done: str
    command: str
    symptoms: Sequence[str]
    code: int
    end_of_output: str
    kept: str = ""


@dataclass
class Tally:
    """Counts trials and findings by kind and operator.

    Args:
        folder: where ``findings.jsonl`` goes, and the folders of the trials that fell.
        keep: how many folders are kept of each kind and operator.
    """

    folder: Path
    keep: int = 1
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    fell: Counter[tuple[str, str]] = field(default_factory=Counter)
    symptoms: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def file(self) -> Path:
        """The file of all findings."""
        return self.folder / "findings.jsonl"

    def __str__(self) -> str:
        return f"{sum(self.tried.values())} tried, {sum(self.fell.values())} fell"

    def passed(self, kind: str, operator: str) -> None:
        """Count a trial."""
        self.tried[kind, operator] += 1

    def add(self, kind: str, operator: str, finding: Finding, scene: Path) -> None:
        """Count a trial that fell, write it down, and keep its folder if it is among the first of its sort."""
        self.fell[kind, operator] += 1
        self.symptoms[kind, finding.symptoms[0].partition(":")[0]] += 1
        kept = ""
        if self.fell[kind, operator] <= self.keep and scene.exists():
            place = self.folder / "kept" / finding.trial.replace("/", "-").replace(" ", "_")
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            scene.rename(place)
            kept = str(place)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(finding), "kept": kept}) + "\n")

    def table(self) -> str:
        """Return tried and fallen trials by kind and by operator, and what went wrong."""
        parts = []
        for title, part in (("kind", 0), ("operator", 1)):
            names = sorted({pair[part] for pair in self.tried})
            lines = [(name, *(str(_sum(count, part, name)) for count in (self.tried, self.fell))) for name in names]
            total = ("together", str(sum(self.tried.values())), str(sum(self.fell.values())))
            parts.append(_aligned([(title, "tried", "fell"), *lines, total]))
        said = [(kind, what, str(n)) for (kind, what), n in sorted(self.symptoms.items(), key=lambda e: -e[1])]
        return "\n\n".join([*parts, _aligned([("kind", "what went wrong", "times"), *said])])


def _sum(count: Counter[tuple[str, str]], part: int, name: str) -> int:
    return sum(n for pair, n in count.items() if pair[part] == name)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
