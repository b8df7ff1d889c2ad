"""Add to a JSON file what pytest's report says about the environment that this runs in, and print the file as a table.

python versions_table.py TABLE.json PYTEST.xml RESOLUTION COMMIT ARGUMENTS_OF_PYTEST
"""

import json
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from re import match
from typing import Any
from xml.etree import ElementTree

PACKAGE = "sam3dnet"
SHOWN = ("torch", "numpy", "nnunetv2")
COUNTS = ("passed", "failed", "skipped")


def dependencies() -> dict[str, str]:
    """Give the installed version of each package that ours names; empty if the installation failed."""
    try:
        names = {name[0] for text in requires(PACKAGE) or () if (name := match(r"[\w.-]+", text))}
    except PackageNotFoundError:
        return {}
    found = {}
    for name in sorted(names, key=str.lower):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # of an extra that is not tested
            continue
    return found


def outcomes(report: Path) -> dict[str, Any]:
    """Count the outcomes of pytest's JUnit report and name the tests that failed; nothing if there is no report."""
    if not report.is_file():
        return {}
    counts = dict.fromkeys(COUNTS, 0)
    failures = []
    for test in ElementTree.parse(report).iter("testcase"):
        inside = {child.tag for child in test}
        outcome = "failed" if inside & {"failure", "error"} else "skipped" if "skipped" in inside else "passed"
        counts[outcome] += 1
        if outcome == "failed":
            failures.append(f"{test.get('classname')}::{test.get('name')}")
    return {**counts, "failures": failures}


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a table of Markdown."""
    lines = [["Python", "resolution", *SHOWN, *COUNTS]]
    for row in rows:
        versions = [row["versions"].get(name, "not installed") for name in SHOWN]
        lines.append([row["python"], row["resolution"], *versions, *(str(row.get(name, "-")) for name in COUNTS)])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(file: Path, report: Path, resolution: str, commit: str, arguments: str) -> None:
    """Add the row of this environment and print the table."""
    empty = {"commit": commit, "pytest": arguments, "platform": platform.platform(), "rows": []}
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else empty
    row = {"python": platform.python_version(), "resolution": resolution, "date": date.today().isoformat()}
    results["rows"].append({**row, "versions": dependencies(), **outcomes(report)})
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results["rows"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6])
