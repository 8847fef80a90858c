"""Laying module names out as layers by projections, so that many modules fit on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Where each module stands in a table of layers by projections.

    Attributes:
        rows: labels of the layers, the numbers in the names joined by dots; "" where a name has none.
        columns: labels of the projections, without what all names share.
        cells: module name -> (row, column).
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, tuple[int, int]]

    @property
    def is_grid(self) -> bool:
        """Whether some projection repeats over layers, so that a table says more than a list."""
        return len(self.columns) < len(self.cells)


def lay_out(names: Sequence[str]) -> Layout:
    """Split each name into its numbers (the layer) and the rest (the projection).

    Args:
        names: module names, in the order rows and columns shall appear; distinct.

    Example:
        >>> layout = lay_out(["enc.0.att.query", "enc.0.att.value", "enc.1.att.query"])
        >>> layout.rows, layout.columns, layout.cells["enc.1.att.query"]
        (('0', '1'), ('query', 'value'), (1, 0))
    """
    split = {name: _split(name) for name in names}
    rows = list(dict.fromkeys(layer for layer, _ in split.values()))
    kinds = list(dict.fromkeys(kind for _, kind in split.values()))
    cells = {name: (rows.index(layer), kinds.index(kind)) for name, (layer, kind) in split.items()}
    return Layout(tuple(rows), tuple(without_common_start(kinds)), cells)


def without_common_start(names: Sequence[str]) -> list[str]:
    """Drop the leading dotted components that all names share, always keeping the last one.

    Args:
        names: at least one.

    Example:
        >>> without_common_start(["bert.layer.query", "bert.layer.value"])
        ['query', 'value']
        >>> without_common_start(["bert.layer.query"])
        ['query']
    """
    split = [name.split(".") for name in names]
    most = min(len(parts) for parts in split) - 1
    shared = 0
    while shared < most and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return [".".join(parts[shared:]) for parts in split]


def _split(name: str) -> tuple[str, str]:
    """The numbers of a name, and the name without them; expert indices in brackets count as numbers."""
    parts = name.replace("[", ".").replace("]", "").split(".")
    layer = ".".join(part for part in parts if part.isdigit())
    return layer, ".".join(part for part in parts if not part.isdigit())
