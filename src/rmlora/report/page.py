"""A report as one HTML file: no script, no network, nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from rmlora.report.document import Block, Commands, Document, Figure, Heading, Paragraph, Points, Table
from rmlora.report.style import STYLE

# Nothing may be fetched and nothing may run, whatever a study's names hold; styles stand in the page itself.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_VERDICTS = ("better", "worse")
_LONG = 32  # characters; longer cells are broken into lines


def to_page(document: Document) -> str:
    """Write a document as an HTML page; every text is escaped.

    Example:
        >>> page = to_page(Document("<script>", [Paragraph("1 < 2")]))
        >>> "<script>" in page, "<h1>&lt;script&gt;</h1>" in page, "<p>1 &lt; 2</p>" in page
        (False, True, True)
    """
    title = escape(document.title)
    body = "\n".join(_blocks(document.blocks))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    """Render blocks; figures that follow one another share a grid."""
    for is_figure, group in groupby(blocks, key=lambda block: isinstance(block, Figure)):
        rendered = [_block(block) for block in group]
        if is_figure:
            yield '<div class="figures">'
        yield from rendered
        if is_figure:
            yield "</div>"


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            kind = ' class="strong"' if block.strong else ""
            return f"<p{kind}>{escape(block.text)}</p>"
        case Points():
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>"
        case Table():
            return _folded(_summary(block), _table(block)) if block.folded else _table(block)
        case Figure():
            name = escape(block.name)
            # The drawing comes from `draw`, which escapes what it writes; all else is text.
            return f'<figure id="{name}">{block.svg}<figcaption>{escape(block.caption)}</figcaption></figure>'
        case Commands():
            lines = "\n".join(
                f'<span class="what"># {escape(name)}</span>\n{escape(line)}' for name, line in block.lines
            )
            return _folded(f"Commands ({len(block.lines)})", f"<pre>{lines}</pre>")


def _summary(table: Table) -> str:
    return f"{table.caption.split('. ')[0].rstrip('.')} ({len(table.rows)})"


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _table(table: Table) -> str:
    """A table that a narrow screen shows as cards: every cell knows the head of its column."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{_row(table, row)}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>"
    return f'<table id="{escape(table.name)}">{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(table: Table, row: Sequence[str]) -> str:
    first, *others = row
    cells = [f'<th scope="row">{escape(first)}</th>']
    for column, cell in zip(table.columns[1:], others, strict=True):
        word = cell.split(":")[0]
        kinds = [*([word] if word in _VERDICTS else []), *(["long"] if len(cell) > _LONG else [])]
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        cells.append(f'<td data-label="{escape(column)}"{kind}><span>{escape(cell)}</span></td>')
    return "".join(cells)
