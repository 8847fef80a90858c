"""Run the slow tests one after the other and keep a line of each: python run.py [WORDS OF PYTEST] [--only TEXT]

A line of rows.jsonl says which test, how it ended, how long it took, and at which commit; a test that is run again
replaces its line. Needs what `make test-slow` installs, and Ray for the tests of clusters.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROWS = HERE / "rows.jsonl"
LIMIT_SECONDS = 1500


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tests whose name contains this regular expression")
    parser.add_argument("--missing", action="store_true", help="tests without a line that says passed")
    told = parser.parse_args()
    rows = {row["test"]: row for row in map(json.loads, ROWS.read_text().splitlines())} if ROWS.exists() else {}
    for test in listed():
        passed = rows.get(test, {}).get("outcome") == "passed"
        if re.search(told.only, test) and not (told.missing and passed):
            rows[test] = run(test)
            ROWS.write_text("".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)))
            print(json.dumps(rows[test]), flush=True)


def listed() -> list[str]:
    """Functions of the slow suite; the cases of one are run together."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-m", "slow and not gpu", "tests"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = [line.split("[")[0] for line in told.splitlines() if "::" in line]
    return list(dict.fromkeys(found))


def run(test: str) -> dict[str, object]:
    """Run one and say how it ended."""
    report, begun = HERE / ".report.xml", time.monotonic()
    words = [sys.executable, "-m", "pytest", "-q", "-m", "slow", f"--junitxml={report}", test]
    try:
        subprocess.run(words, cwd=ROOT, capture_output=True, timeout=LIMIT_SECONDS, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite")
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    except subprocess.TimeoutExpired:
        counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    report.unlink(missing_ok=True)
    sound = counts["tests"] > 0 and not counts["failures"] + counts["errors"] + counts["skipped"]
    outcome = "passed" if sound else "not ended" if not counts["tests"] else "not passed"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    seconds = round(time.monotonic() - begun, 1)
    told = {"date": time.strftime("%Y-%m-%d"), "commit": commit.strip(), "cases": counts["tests"]}
    return {"test": test, "outcome": outcome, "seconds": seconds, **told}


if __name__ == "__main__":
    main()
