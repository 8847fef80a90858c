import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.config import DataConfig
from rmlora.errors import DataError
from rmlora.tasks.data import TaskData, load_data
from tests import questions, runs


def load(train: Path, held_out: Path, **settings: Any) -> TaskData:
    return load_data(DataConfig(train=str(train), eval=str(held_out), **settings), "question-answering")


def row(**changes: Any) -> dict[str, Any]:
    answers = {"text": ["red"], "answer_start": [11]}
    return {"id": "q1", "question": "what?", "context": "the cat is red", "answers": answers} | changes


def answer(text: Any, start: Any) -> dict[str, Any]:
    return {"text": [text], "answer_start": [start]}


def test_the_nested_file_gives_every_question_with_its_context(tmp_path: Path) -> None:
    files = questions.save_squad(tmp_path)
    data = load(*files)
    assert (len(data.train), len(data.eval), data.classes, data.majority) == (24, 9, None, None)
    assert data.columns == ("question", "context", "answers")
    for read, told in zip(data.eval.labels, questions.rows_of(files[1]), strict=True):
        assert (read.id, list(read.answers)) == (told["id"], told["answers"]["text"])
        assert told["context"][read.start : read.end] == told["answers"]["text"][0]


def test_tables_of_the_hubs_columns_read_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    files = questions.save_squad(tmp_path)
    nested = load(*files)
    for file in files:
        rows = questions.rows_of(file)
        runs.write_jsonl(file.with_suffix(".jsonl"), rows)
        write_table(pa.Table.from_pylist(rows), file.with_suffix(".parquet"))
    for suffix in (".jsonl", ".parquet"):
        flat = load(*(file.with_suffix(suffix) for file in files))
        assert (flat.train, flat.eval) == (nested.train, nested.eval)


def test_a_folder_laid_out_as_on_the_hub_reads_the_same(tmp_path: Path) -> None:
    files = questions.save_squad(tmp_path)
    folder = tmp_path / "hub"
    runs.write_jsonl(folder / "train.jsonl", questions.rows_of(files[0]))
    runs.write_jsonl(folder / "validation.jsonl", questions.rows_of(files[1]))
    data = load_data(DataConfig(dataset=str(folder)), "question-answering")
    assert data.train == load(*files).train


def test_blanks_around_an_answer_are_no_part_of_it(tmp_path: Path) -> None:
    file = runs.write_jsonl(tmp_path / "a.jsonl", [row(answers=answer(" red", 10))])
    asked = load(file, file).train.labels[0]
    assert (asked.start, asked.end, asked.answers) == (11, 14, (" red",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": answer("red", 99)}, r'row 2 \(id q1\): answer_start 99 puts "red" outside the context of 14'),
        ({"answers": answer("red", -3)}, 'answer_start -3 puts "red" outside'),
        ({"answers": answer("red", 3)}, 'at answer_start 3 the context has " ca", not "red"'),
        ({"answers": answer("", 3)}, "the first answer is empty"),
        ({"answers": answer("red", "11")}, "needs a text and a whole answer_start, not 'red' and '11'"),
        ({"answers": {"text": [], "answer_start": []}}, "no answer; in SQuAD 1.1 every question has one"),
        ({"answers": {"text": ["red"], "answer_start": []}}, "1 answers, but 0 values of answer_start"),
        ({"answers": None}, '"answers" must hold text and answer_start of each answer, not nothing'),
        ({"answers": "red"}, "must hold text and answer_start of each answer, not 'red'"),
        ({"context": None}, 'row 2: column "context" holds nothing'),
        ({"question": 3}, 'row 2: column "question" holds 3, which is not text'),
        ({"id": None}, 'row 2: column "id" holds nothing'),
        ({"id": "q0"}, 'row 2: id "q0" is that of row 1 too'),
    ],
)
def test_a_bad_row_is_one_line_that_names_it(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = runs.write_jsonl(tmp_path / "good.jsonl", [row()])
    bad = runs.write_jsonl(tmp_path / "bad.jsonl", [row(id="q0"), row(**changes)])
    for files in ((bad, good), (good, bad)):
        with pytest.raises(DataError, match=message) as caught:
            load(*files)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"version": "1.1", "data": []}', "has no rows"),
        ('{"data": [{"title": "t"}]}', 'article 1 has no list "paragraphs"'),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', 'article 1, paragraph 1 has no list "qas"'),
        ('{"data": [{"paragraphs": [{"qas": ["who?"]}]}]}', "a question must be an object"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "1"}]}]}]}', 'row 1: column "question" holds nothing'),
        ('{"version": "1.1", "data": [{"par', "not valid JSON"),
        (json.dumps([{"text": "a", "label": 1}]), "cannot tell which column is data.text"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path, path)
    assert "\n" not in str(caught.value)
    assert "dev.json" in str(caught.value)
