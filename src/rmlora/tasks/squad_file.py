"""The file format of SQuAD 1.1: articles, in them paragraphs, in them questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmlora.errors import DataError
from rmlora.tasks.table import Table


def is_squad(value: Any) -> bool:
    """Tell whether parsed JSON is nested as SQuAD is.

    Example:
        >>> is_squad({"version": "1.1", "data": []}), is_squad({"text": "a", "label": 0})
        (True, False)
    """
    return isinstance(value, dict) and isinstance(value.get("data"), list) and "label" not in value


def flatten(path: Path, value: dict[str, Any]) -> Table:
    """Make one row of each question: id, question, context, answers.

    Args:
        path: of the file, for messages.
        value: parsed; not mutated.

    Raises:
        DataError: a part is missing or of the wrong kind; article and paragraph are named.

    Example:
        >>> answers = [{"text": "a cat", "answer_start": 3}]
        >>> qas = [{"id": "1", "question": "Who?", "answers": answers}]
        >>> paragraphs = [{"context": "so a cat", "qas": qas}]
        >>> flatten(Path("dev.json"), {"data": [{"paragraphs": paragraphs}]}).columns["question"]
        ['Who?']
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "question", "context", "answers")}
    for i, article in enumerate(value["data"], 1):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{path}: article {i}"), 1):
            where = f"{path}: article {i}, paragraph {j}"
            for question in _list(paragraph, "qas", where):
                if not isinstance(question, dict):
                    raise DataError(f"{where}: a question must be an object with id, question and answers")
                columns["context"].append(paragraph.get("context"))
                for name in ("id", "question", "answers"):
                    columns[name].append(question.get(name))
    return Table(str(path), {**columns})


def _list(holder: Any, name: str, where: str) -> list[Any]:
    found = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(found, list):
        raise DataError(f'{where} has no list "{name}"; SQuAD files hold data[].paragraphs[].qas[]')
    return found
