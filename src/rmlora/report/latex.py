"""The tables of a report as LaTeX with booktabs, to be read in with \\input."""

from __future__ import annotations

from rmlora.report.document import Document, Table

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    '"': "''",
}


def to_latex(document: Document) -> str:
    r"""Write the tables meant for a paper, each a `table` environment with a caption and a label.

    Example:
        >>> table = Table("main", "Of 50%.", ("method", "f1"), (("rm_lora", "1 ± 2"),))
        >>> print(to_latex(Document("study", [table])))
        % study: needs \usepackage{booktabs}
        \begin{table}[t]
        \centering
        \caption{Of 50\%.}
        \label{tab:main}
        \begin{tabular}{lr}
        \toprule
        method & f1 \\
        \midrule
        rm\_lora & 1 $\pm$ 2 \\
        \bottomrule
        \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    first = f"% {' '.join(document.title.split())}: needs \\usepackage{{booktabs}}"
    return "\n\n".join([first + "\n" + "\n\n".join(_table(t) for t in document.tables() if t.in_paper)]) + "\n"


def escape(text: str) -> str:
    r"""Make text mean itself in LaTeX.

    Example:
        >>> print(escape(r"50% of a_b \x {y}"))
        50\% of a\_b \textbackslash{}x \{y\}
    """
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def _table(table: Table) -> str:
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _line(table.columns),
        r"\midrule",
        *(_line(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    # A bracket after \\ would be read as its optional argument.
    escaped = [f"{{{cell}}}" if cell.startswith("[") else cell for cell in map(escape, cells)]
    return " & ".join(escaped) + r" \\"
