"""What docs/trust.md promises: every row has its thread, a promise, tests that exist, and a command that exists."""

import re
from pathlib import Path

from typer.main import get_command

from rmlora.cli import app
from tests.test_architecture import ROOT, functions

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "trust.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| what"))
]


def test_every_promise_has_four_parts_and_no_thread_stands_twice() -> None:
    assert len(ROWS) > 20
    assert not [row for row in ROWS if len(row) != 4 or not all(row)]
    links = re.findall(r"\]\((https://[^)]+)\)", " ".join(row[0] for row in ROWS))
    assert len(links) == len(set(links)) > 20


def test_every_promise_names_tests_that_exist() -> None:
    missing = []
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[2])
        assert named, f"no test holds: {row[1]}"
        assert row[2] == ", ".join(f"`{file}::{name}`" for file, name in named)
        missing += [f"{file}::{name}" for file, name in named if name not in _tests_of(ROOT / file)]
    assert not missing


def test_of_every_thread_row_one_test_bears_the_name() -> None:
    nameless = []
    for row in ROWS:
        threads = re.findall(r"github\.com/[\w.-]+/([\w.-]+)/issues/(\d+)", row[0])
        slugs = [re.sub(r"\W", "_", f"{repository}_{number}".lower()) for repository, number in threads]
        if slugs and not any(re.search(rf"_{slug}_", row[2]) for slug in slugs):
            nameless.append(row[0])
    assert not nameless


def test_every_command_a_promise_is_met_in_exists() -> None:
    commands = {row[3].strip("`").split()[1] for row in ROWS if row[3].startswith("`rmlora ")}
    assert commands
    assert commands <= set(get_command(app).commands)


def _tests_of(path: Path) -> set[str]:
    return {function.name for function in functions(path)} if path.is_file() else set()
