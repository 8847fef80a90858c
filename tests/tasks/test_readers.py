import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from rmlora.errors import DataError
from rmlora.tasks.hub import read_hub, split_name
from rmlora.tasks.readers import read_file
from rmlora.tasks.table import LABELS, Table, check_texts, take, take_text

ROWS = [{"text": "one, two", "label": 0}, {"text": 'say "three"\nfour', "label": 1}]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=2))
    elif kind == "csv":
        path.write_text('text,label\n"one, two",0\n"say ""three""\nfour",1\n')
    elif kind == "tsv":
        path.write_text('text\tlabel\n"one, two"\t0\n"say ""three""\nfour"\t1\n')
    else:
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_reads_the_same(tmp_path: Path, kind: str) -> None:
    table = read_file(str(write(tmp_path, kind)), "train")
    assert {name: list(column) for name, column in table.columns.items()} == {
        "text": [row["text"] for row in ROWS],
        "label": [0, 1],
    }


def test_npz_takes_the_part_that_is_asked_for(tmp_path: Path) -> None:
    x = np.zeros((3, 2, 2), dtype=np.uint8)
    arrays = {"x_train": x, "y_train": np.arange(3), "x_test": x[:1], "y_test": np.ones(1, dtype=int)}
    np.savez(tmp_path / "a.npz", classes=np.array(["a", "b", "c"]), **arrays)
    train, held_out = (read_file(str(tmp_path / "a.npz"), part) for part in ("train", "eval"))
    assert (len(train), len(held_out)) == (3, 1)
    assert list(held_out.columns["y"]) == [1]
    assert train.class_names == ("a", "b", "c")


def test_npz_of_one_part_needs_no_suffix(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4), dtype=np.uint8), y=np.arange(2))
    assert set(read_file(str(tmp_path / "a.npz"), "eval").columns) == {"x", "y"}


def test_npz_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        read_file(str(tmp_path / "a.npz"), "train")


def test_image_folders_are_read_by_class(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "one.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    table = read_file(str(tmp_path), "train")
    assert table.columns["label"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"is empty"),
        ("a.jsonl", "\n\n", r"has no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"row 2: expected an object"),
        ("a.json", "[{]", r"line 1: not valid JSON"),
        ("a.csv", "text,label\n", r"has no rows"),
        ("a.csv", "text,label\na,0\nb\n", r"not a readable table"),
        ("a.parquet", "PAR1 no", r"not readable Parquet"),
        ("a.npz", "PK no", r"not a readable .npz"),
        ("a.xlsx", "?", r"expected .jsonl"),
        ("a.jsonl", b"\xff\xfe\x00", r"not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_file(str(tmp_path / name), "train")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    with pytest.raises(DataError, match=r'did you mean ".*data.jsonl"'):
        read_file(str(tmp_path / "date.jsonl"), "eval")
    with pytest.raises(DataError, match="no images in folders named by class"):
        read_file(str(tmp_path), "train")


def test_unequal_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 4, 4)), y_train=np.arange(3))
    with pytest.raises(DataError, match="differ in length"):
        read_file(str(tmp_path / "a.npz"), "train")
    with pytest.raises(DataError, match='no arrays for "eval"'):
        read_file(str(tmp_path / "a.npz"), "eval")


def test_a_wrong_column_names_the_nearest() -> None:
    table = Table("a.csv", {"sentence": ["x"], "gold": [1]})
    with pytest.raises(DataError, match=r'no column "sentense" \(data.text\) \(did you mean "sentence"\?\)'):
        take(table, "sentense", (), "data.text")
    with pytest.raises(DataError, match="one of sentence, gold"):
        take(table, None, LABELS, "data.label")


def test_pairs_are_found_by_their_usual_names() -> None:
    glue = [("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence")]
    for first, second in glue:
        table = Table("a", {second: ["b"], first: ["a"], "label": [0]})
        assert take_text(table, None, None) == (first, second)
        assert take_text(table, second, None) == (second, None)
    assert take_text(Table("a", {"text": ["a"]}), None, None) == ("text", None)


def test_what_is_not_text_is_refused_by_row() -> None:
    for value, found in ((None, "holds nothing"), (3, "not text")):
        with pytest.raises(DataError, match=rf'a.csv, row 3: column "text" .*{found}'):
            check_texts(Table("a.csv", {"text": ["x", value]}, first_row=2), "text")


def test_hub_names_are_split() -> None:
    assert split_name("super_glue/boolq") == ("aps/super_glue", "boolq")
    assert split_name("imdb") == ("imdb", None)


def test_a_local_folder_reads_like_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    train, held_out = read_hub(str(data), "train", None)
    assert list(train.columns["text"]) == ["a", "b"]
    assert held_out.where.endswith("[validation]")
    with pytest.raises(DataError, match=r'no split "tost" .*it has'):
        read_hub(str(data), "train", "tost")


def test_an_unknown_hub_data_set_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match='cannot load data set "nobody/nothing"') as caught:
        read_hub("nobody/nothing", "train", None)
    assert "\n" not in str(caught.value)
