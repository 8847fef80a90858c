"""Reading examples from a local file, one format after the other, with errors that name the row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import DataError, nearest
from rmlora.tasks.squad_file import flatten, is_squad
from rmlora.tasks.table import Table

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
PARTS = {"train": ("train",), "eval": ("test", "val", "valid", "validation", "eval")}


def read_file(name: str, part: str) -> Table:
    """Read a data file or image folder.

    Args:
        name: path; the suffix decides the format, a folder holds one folder of images per class.
        part: "train" or "eval": which arrays to take where one file holds both.

    Raises:
        DataError: missing, empty, unreadable, or of an unknown kind.
    """
    path = Path(name).expanduser()
    if not path.exists():
        beside = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f'no data file "{name}" (data.{part}){nearest(str(path), beside)}')
    if path.is_dir():
        return read_image_folder(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f'cannot read "{name}": expected {", ".join(READERS)} or a folder of images')
    if path.stat().st_size == 0:
        raise DataError(f'"{name}" (data.{part}) is empty')
    table = reader(path, part)
    if len(table) == 0:
        raise DataError(f'"{name}" (data.{part}) has no rows')
    return table


def read_jsonl(path: Path, part: str = "train") -> Table:
    """Read one JSON object per line, one list of objects, or SQuAD's nesting; a key missing in a row reads as None."""
    text = _read_text(path)
    nested = _parse_whole(text)
    if is_squad(nested):
        return flatten(path, nested)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: JSON that cannot be read: {error}") from error
    else:
        rows = [_parse_line(path, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    wrong = next((i for i, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise DataError(f'{path}, row {wrong}: expected an object like {{"text": ..., "label": ...}}')
    names = dict.fromkeys(key for row in rows for key in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names})


def _parse_whole(text: str) -> Any:
    """Parse a file that is one JSON object; None if it is anything else."""
    try:
        return json.loads(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        told = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{path}, line {number}: not valid JSON: {told}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f'cannot read "{path}": {reason}') from error


def read_csv(path: Path, part: str = "train") -> Table:
    """Read a CSV, or TSV by its suffix, whose first line names the columns."""
    from pyarrow import ArrowException
    from pyarrow.csv import ParseOptions
    from pyarrow.csv import read_csv as read

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        columns = read(path, parse_options=ParseOptions(delimiter=delimiter, newlines_in_values=True)).to_pydict()
    except (ArrowException, OSError, ValueError) as error:  # a head that is not UTF-8 is told when it is made a text
        raise DataError(f"{path}: not a readable table: {str(error).splitlines()[0]}") from error
    return Table(str(path), columns, first_row=2)


def read_parquet(path: Path, part: str = "train") -> Table:
    """Read a Parquet file; images stored as bytes, as Hub data sets have them, are decoded when used."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        columns = read_table(path).to_pydict()
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not readable Parquet: {str(error).splitlines()[0]}") from error
    return Table(str(path), columns)


def read_npz(path: Path, part: str = "train") -> Table:
    """Read NumPy arrays: `x_train` and `y_train`, or `x_test` and `y_test` for "eval", or just `x`, `y`.

    Arrays of Python objects are refused: reading them would unpickle, which runs code.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise DataError(f'"{path}" is not a readable .npz of plain arrays: {error}') from error
    names = arrays.pop("classes", None)
    endings = [f"_{p}" for p in PARTS[part]]
    chosen = {n[: -len(e)]: a for e in reversed(endings) for n, a in arrays.items() if n.endswith(e)}
    columns = chosen or {n: a for n, a in arrays.items() if not n.endswith("_train")}
    lengths = {name: len(array) for name, array in columns.items() if array.ndim}
    if len(set(lengths.values())) > 1:
        raise DataError(f'"{path}": arrays of "{part}" differ in length: {lengths}')
    if not lengths:
        found = ", ".join(arrays) or "nothing"
        raise DataError(f'"{path}" has no arrays for "{part}" (x_{PARTS[part][0]}, ...); it has {found}')
    class_names = None if names is None else tuple(str(name) for name in names)
    return Table(str(path), {name: columns[name] for name in lengths}, class_names)


def read_image_folder(path: Path, part: str = "train") -> Table:
    """Read a folder that holds one folder of images per class, sorted by name."""
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    files = [
        (str(image), folder.name)
        for folder in classes
        for image in sorted(folder.rglob("*"))
        if image.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(f'"{path}" holds no images in folders named by class ({path}/<class>/<image>.png)')
    return Table(str(path), {"image": [f for f, _ in files], "label": [name for _, name in files]})


READERS: dict[str, Callable[[Path, str], Table]] = {
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".npz": read_npz,
}
