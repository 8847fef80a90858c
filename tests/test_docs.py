"""What the documents say is so: their code runs, their commands exist, their tables are the program's own."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rmlora.methods import LAWS, METHODS, PRESETS

ROOT = Path(__file__).resolve().parents[1]
FRONT = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = [ROOT / name for name in FRONT] + sorted((ROOT / "docs").rglob("*.md"))
LANGUAGES = {"python", "sh", "yaml", "text"}
NOT_RUN = {"README.md": 1}
CARDS = sorted((ROOT / "docs" / "methods").glob("*.md"))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, where it begins, and why it is not run, if so."""

    language: str
    text: str
    line: int
    not_run: str | None


def shown(path: Path) -> str:
    """A path as a reader of the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a document."""
    found, opened, inside = [], None, []
    reason = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"\s*```(\w*)\s*$", line)
        if fence and opened is None:
            opened, inside = (fence[1], number), []
        elif fence:
            found.append(Block(opened[0], "\n".join(inside), opened[1], reason))
            opened = reason = None
        elif opened is not None:
            inside.append(line)
        elif line.strip():
            comment = re.fullmatch(r"<!-- not run: (.+) -->", line.strip())
            reason = comment[1] if comment else None
    assert opened is None, f"{shown(path)}:{opened} is never closed"
    return found


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"(?ms)^\s*```.*?^\s*```\s*$", "", path.read_text(encoding="utf-8"))


def tables(path: Path) -> list[list[list[str]]]:
    """The tables of a document, each a list of rows of cells; the ruler below the head is left out."""
    found: list[list[list[str]]] = [[]]
    for line in prose(path).splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def table_after(path: Path, first_cell: str) -> list[list[str]]:
    """The table whose head begins with `first_cell`, without its head."""
    return next(table for table in tables(path) if table[0][0] == first_cell)[1:]


def code_in(cell: str) -> str:
    """What stands between the backticks of a cell."""
    return cell.strip().strip("`")


def sections(path: Path) -> set[str]:
    """The anchors GitHub gives to the headings of a document."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(line: str) -> list[list[str]]:
    """The words of every `rmlora` or `make` command on a shell line."""
    parts = re.split(r"\||&&|;", line.split(" #")[0])
    words = [shlex.split(part) for part in parts]
    return [w[w.index("rmlora") :] if "rmlora" in w else w for w in words if w and ("rmlora" in w or w[0] == "make")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_every_python_block_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks(path):
            if block.language == "python" and block.not_run is None:
                source = "\n" * block.line + block.text
                exec(compile(source, shown(path), "exec"), namespace)


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    counted = {shown(p): sum(b.language == "python" and b.not_run is not None for b in blocks(p)) for p in DOCUMENTS}
    assert {path: count for path, count in counted.items() if count} == NOT_RUN


def test_every_block_names_its_language() -> None:
    assert not [f"{shown(p)}:{b.line}" for p in DOCUMENTS for b in blocks(p) if b.language not in LANGUAGES]


def test_yaml_blocks_are_configurations_or_studies() -> None:
    from rmlora.compare.cells import final_cells, groups_of, selection_cells
    from rmlora.compare.reading import make_study
    from rmlora.config_source import merge, parse_yaml, resolve

    for path in DOCUMENTS:
        for block in blocks(path):
            if block.language == "yaml":
                where = f"{shown(path)}:{block.line}"
                told = parse_yaml(block.text, where)
                if "methods" in told:
                    study = make_study(told, where)
                    selection_cells(study)
                    final_cells(study, dict.fromkeys(groups_of(study), 1e-3))
                else:
                    resolve(merge(told, {}), where)


def test_every_command_exists() -> None:
    from typer.main import get_command

    from rmlora.cli import app

    known = get_command(app).commands
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for path in DOCUMENTS:
        lines = [line for b in blocks(path) if b.language == "sh" for line in b.text.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`((?:rmlora|make) [a-z][^`]*)`", prose(path))
        for program, *words in (command for line in lines for command in commands(line)):
            if program == "make":
                assert set(words) <= targets, f"{shown(path)}: make {' '.join(words)}"
            elif words and not words[0].startswith("--"):
                options = {option for parameter in known[words[0]].params for option in parameter.opts}
                given = {word for word in words if word.startswith("--")}
                assert given <= options | {"--help"}, f"{shown(path)}: rmlora {' '.join(words)}"


def test_relative_links_lead_somewhere() -> None:
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path)):
            file, _, anchor = target.partition("#")
            if not target.startswith(("http://", "https://", "mailto:")):
                there = path if not file else (path.parent / file).resolve()
                if not there.exists() or (anchor and anchor not in sections(there)):
                    broken.append(f"{shown(path)}: {target}")
    assert not broken


def test_every_test_that_a_document_names_exists() -> None:
    missing = []
    for path in DOCUMENTS:
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text(encoding="utf-8")):
            there = ROOT / file
            defined = {n.name for n in ast.walk(ast.parse(there.read_text())) if isinstance(n, ast.FunctionDef)}
            if name and name not in defined:
                missing.append(f"{shown(path)}: {file}::{name}")
    assert not missing


def test_the_map_names_every_file_of_the_library() -> None:
    text = prose(ROOT / "ARCHITECTURE.md")
    package = ROOT / "src" / "rmlora"
    rooms = [p.name for p in package.iterdir() if p.suffix == ".py" and not p.name.startswith("__")]
    rooms += [f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").is_file()]
    assert not [room for room in rooms if f"`{room}`" not in text]


def test_every_method_has_a_row_in_the_readme_and_in_the_index() -> None:
    for document in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        rows = {row[0] for table in tables(document) for row in table}
        for name in METHODS:
            assert any(f"{name}.md)" in cell and f"`{name}`" in cell for cell in rows), f"{shown(document)}: {name}"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_tells_every_knob_and_every_law(path: Path) -> None:
    method = METHODS[path.stem]
    text = prose(path)
    assert not [knob for knob in method.knobs if f"`{knob}`" not in text]
    laws = {code_in(row[0]): row[1] for row in table_after(path, "law")}
    assert laws == {law: f"no: {method.excluded[law]}" if law in method.excluded else "yes" for law in LAWS}


def test_the_cards_tables_of_presets_are_the_programs() -> None:
    for path in CARDS:
        for row in (row for table in tables(path) if table[0][1:] == list(PRESETS) for row in table[1:]):
            field = code_in(row[0])
            told = [ast.literal_eval(code_in(cell)) for cell in row[1:]]
            assert told == [getattr(preset, field) for preset in PRESETS.values()], f"{shown(path)}: {field}"
    assert any(table[0][1:] == list(PRESETS) for table in tables(ROOT / "docs" / "methods" / "rm-lora.md"))


def settings_table() -> str:
    """Every setting of a run: dotted name, default, meaning."""
    from pydantic import BaseModel

    from rmlora.config import RunConfig

    def rows(section: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += rows(field.annotation, f"{prefix}{name}.")
            else:
                default = json.dumps(field.get_default(call_default_factory=True), default=str)
                given = "required" if field.is_required() else f"`{default}`"
                meaning = str(field.description).replace("<", "&lt;").replace("|", "or")
                found.append(f"| `{prefix}{name}` | {given} | {meaning} |\n")
        return found

    return "".join(rows(RunConfig, ""))


def test_the_table_of_settings_is_the_programs() -> None:
    table = settings_table()
    told = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert table in told, f"the table in docs/configuration.md must be:\n{table}"
