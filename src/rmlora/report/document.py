"""What a report consists of, before it is Markdown, LaTeX or HTML: all of it plain text that a renderer must escape."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a chapter, 3 a section of it."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a strong one says something nobody should miss."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Points:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: short, of letters and dashes; unique in the document.
        caption: one sentence.
        columns: their heads.
        rows: cells as text, one per column; the first names the row.
        folded: whether a page may show it on demand only.
        in_paper: whether the LaTeX file has it.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    in_paper: bool = True


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        name: short, of letters, digits and dashes; unique in the document.
        caption: what is seen.
        svg: the drawing, an `<svg>` element that names nothing outside itself.
    """

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, each with what it is."""

    lines: tuple[tuple[str, str], ...]


Block = Heading | Paragraph | Points | Table | Figure | Commands


@dataclass
class Document:
    """A report.

    Attributes:
        title: the study's.
        blocks: in order.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """All tables."""
        return [block for block in self.blocks if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        """All figures."""
        return [block for block in self.blocks if isinstance(block, Figure)]
