"""From a study's folder to its report on disk."""

from __future__ import annotations

from pathlib import Path

from rmlora.files import check_writable, write_text
from rmlora.report.contents import compile_document
from rmlora.report.latex import to_latex
from rmlora.report.markdown import FIGURES, to_markdown
from rmlora.report.page import to_page
from rmlora.report.study_files import read_study

_SVG_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def write_report(study: str | Path, output: str | Path | None = None, baseline: str | None = None) -> list[Path]:
    """Write the report of a study: report.html, report.md with figures/, and report.tex.

    Everything comes from the study's files, and the same files give the same report. Nothing of the study is changed.

    Args:
        study: the folder `rmlora compare` wrote.
        output: folder of the report; None is `report` in the study's. Files of an earlier report are replaced.
        baseline: label or method everything is compared with; None is plain LoRA.

    Returns:
        The files written: page, Markdown, LaTeX, then the figures.

    Raises:
        DataError: the folder holds no study, or no finished run.
        ConfigError: the study has no such baseline.
        RmloraError: the report cannot be written.
    """
    folder = Path(output) if output is not None else Path(study) / "report"
    files = read_study(study)
    check_writable(folder)
    document = compile_document(files, baseline)
    written = [
        write_text(folder / "report.html", to_page(document)),
        write_text(folder / "report.md", to_markdown(document)),
        write_text(folder / "report.tex", to_latex(document)),
    ]
    for figure in document.figures():
        written.append(write_text(folder / FIGURES / f"{figure.name}.svg", _SVG_HEAD + figure.svg + "\n"))
    return written
