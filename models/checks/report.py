"""Reports of checks: the lines of a table, and the module card as markdown and JSON."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.checks.checking import FAIL, NOT_APPLICABLE, PASS, SKIPPED, Result
from utils.files import write_json, write_text

OUTCOMES = {PASS: "passed", FAIL: "failed", SKIPPED: "skipped", NOT_APPLICABLE: "not applicable"}
NAME_WIDTH, OUTCOME_WIDTH = 16, len(NOT_APPLICABLE)


@dataclass
class Report:
    """Results of the checks of one layer or network.

    Attributes:
        name: of the layer or network; names the card's files.
        facts: facts of the layer or network, by heading.
        parts: reports of a network's distinct layers.
    """

    name: str
    facts: dict[str, str]
    results: list[Result] = field(default_factory=list)
    parts: list["Report"] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything failed."""
        return any(result.outcome == FAIL for result in self.results) or any(part.failed for part in self.parts)

    def count(self) -> str:
        """Return the number of checks by outcome, as text."""
        counted = Counter(result.outcome for result in self.results)
        said = ", ".join(f"{counted[outcome]} {word}" for outcome, word in OUTCOMES.items() if counted[outcome])
        return f"{len(self.results)} checks: {said}"

    def verdict(self) -> str:
        """Return the last line of a table."""
        if not self.parts:
            return self.count()
        wrong = sum(part.failed for part in self.parts)
        failures = f"{wrong} of them with failures" if wrong else "none of them with a failure"
        return f"{self.count()}; {len(self.parts)} distinct layers, {failures}"


def result_lines(result: Result) -> list[str]:
    """Return a check's line and, after a failure, the remedy."""
    lines = [f"  {result.check:<{NAME_WIDTH}}  {result.outcome:<{OUTCOME_WIDTH}}  {result.seen}"]
    if result.remedy:
        lines.append(f"  {'':<{NAME_WIDTH}}  {'remedy':<{OUTCOME_WIDTH}}  {result.remedy}")
    return lines


def part_lines(part: Report) -> list[str]:
    """Return the line of a network's layer, and the lines of its failures."""
    lines = [f"  {part.name}", f"    {part.count()}"]
    for result in part.results:
        if result.outcome == FAIL:
            lines += ["  " + line for line in result_lines(result)]
    return lines


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a markdown table; vertical bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def results_markdown(report: Report) -> list[str]:
    """Return the lines of a table of results, then of the remedies."""
    rows = [
        [
            result.check,
            f"**{result.outcome}**" if result.outcome == FAIL else result.outcome,
            result.seen,
            result.promise,
        ]
        for result in report.results
    ]
    lines = markdown_table(["check", "result", "what was seen", "promise"], rows)
    wrong = [
        f"- **{result.check}**: {result.seen}. {result.remedy}" for result in report.results if result.outcome == FAIL
    ]
    return [*lines, "", report.count(), *(["", "What to do:", "", *wrong] if wrong else [])]


def markdown(report: Report) -> str:
    """Return a module card."""
    lines = [
        f"# Module card: {report.name}",
        "",
        *markdown_table(["fact", ""], [[key, value] for key, value in report.facts.items()]),
        "",
    ]
    lines += ["## Checks", "", *results_markdown(report), ""]
    if report.parts:
        lines += ["## Layers", "", report.verdict(), ""]
        lines += markdown_table(["layer", "checks"], [[part.name, part.count()] for part in report.parts])
        for part in report.parts:
            lines += ["", f"### {part.name}", "", *results_markdown(part)]
    return "\n".join(lines).rstrip() + "\n"


def content(report: Report) -> dict[str, Any]:
    """Return a report as plain data."""
    parts = {"parts": [content(part) for part in report.parts]} if report.parts else {}
    return {
        "name": report.name,
        "passed": not report.failed,
        "facts": report.facts,
        "checks": [asdict(result) for result in report.results],
    } | parts


def write_card(report: Report, folder: str | Path) -> list[Path]:
    """Write `NAME.md` and `NAME.json`; return their paths."""
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in report.name)
    paths = [Path(folder) / f"{stem}.md", Path(folder) / f"{stem}.json"]
    write_text(paths[0], markdown(report))
    write_json(paths[1], content(report))
    return paths
