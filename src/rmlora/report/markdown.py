"""A report as Markdown, with its figures as files beside it."""

from __future__ import annotations

import re

from rmlora.report.document import Block, Commands, Document, Figure, Heading, Paragraph, Points, Table

FIGURES = "figures"

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def to_markdown(document: Document) -> str:
    """Write a document as Markdown (GitHub's tables); figures are linked as figures/NAME.svg.

    Example:
        >>> print(to_markdown(Document("a_b", [Paragraph("1 < 2")])))
        # a\\_b
        <BLANKLINE>
        1 \\< 2
        <BLANKLINE>
    """
    return "\n\n".join([f"# {escape(document.title)}", *(_block(block) for block in document.blocks)]) + "\n"


def escape(text: str) -> str:
    r"""Make text mean itself: no markup, no HTML, no line that ends a table.

    Example:
        >>> escape("<b>|x|</b>\n*y*")
        '\\<b\\>\\|x\\|\\</b\\> \\*y\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape(block.text)}"
        case Paragraph():
            return f"**{escape(block.text)}**" if block.strong else escape(block.text)
        case Points():
            return "\n".join(f"- {escape(item)}" for item in block.items)
        case Table():
            return f"{_table(block)}\n\n*{escape(block.caption)}*"
        case Figure():
            return f"![{escape(block.caption)}]({FIGURES}/{block.name}.svg)"
        case Commands():
            # A fence longer than any run of backticks inside cannot be closed by what it holds.
            longest = max((len(run) for _, line in block.lines for run in re.findall("`+", line)), default=0)
            fence = "`" * max(3, longest + 1)
            lines = "\n".join(f"# {_one_line(name)}\n{_one_line(line)}" for name, line in block.lines)
            return f"{fence}sh\n{lines}\n{fence}"


def _table(table: Table) -> str:
    marks = [":--", *["--:"] * (len(table.columns) - 1)]
    lines = [table.columns, tuple(marks), *table.rows]
    shown = [line if line == tuple(marks) else tuple(map(escape, line)) for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def _one_line(text: str) -> str:
    return " ".join(text.split())
