import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rmlora.config import DataConfig
from rmlora.errors import DataError
from rmlora.tasks.data import Examples, load_data
from rmlora.tasks.encode import ImageExamples, encode_texts, head_of, pad_texts, to_image
from tests import runs


def test_pairs_are_found_and_labelled(tmp_path: Path) -> None:
    train, held_out = runs.save_pairs(tmp_path)
    data = load_data(DataConfig(train=str(train), eval=str(held_out)), "text-classification")
    assert data.columns == ("sentence1", "sentence2", "label")
    assert (len(data.train), len(data.eval), data.classes.names) == (40, 16, ("0", "1"))
    labels = [row["label"] for row in runs.pairs(16, seed=1)]
    assert data.majority == max(labels.count(0), labels.count(1)) / 16
    assert data.files == (train, held_out)


def test_one_npz_holds_both_parts(tmp_path: Path) -> None:
    path = runs.save_digits(tmp_path / "d.npz")
    data = load_data(DataConfig(train=str(path)), "image-classification")
    assert (len(data.train), len(data.eval), data.classes.names) == (24, 12, ("dark", "grey", "bright"))


def test_a_sample_is_seeded_and_keeps_its_labels(tmp_path: Path) -> None:
    train, held_out = runs.save_pairs(tmp_path)
    config = DataConfig(train=str(train), eval=str(held_out), train_examples=10, eval_examples=99)
    first, again, other = (load_data(config, "text-classification", seed) for seed in (0, 0, 1))
    assert first.train == again.train != other.train
    assert (len(first.train), len(first.eval)) == (10, 16)
    whole = {(row["sentence1"], row["sentence2"]): row["label"] for row in runs.pairs(40)}
    assert [whole[key] for key in zip(*first.train.inputs, strict=True)] == first.train.labels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no data: give data.train"),
        ({"train": "a.jsonl"}, "no held-out data"),
        ({"train": "a.jsonl", "dataset": "glue/rte"}, "not both"),
    ],
)
def test_incomplete_data_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(**settings), "text-classification")


def test_held_out_data_must_have_the_same_columns(tmp_path: Path) -> None:
    train, _ = runs.save_pairs(tmp_path)
    other = runs.write_jsonl(tmp_path / "other.jsonl", [{"sentence1": "a", "sentence_2": "b", "label": 0}])
    with pytest.raises(DataError, match=r'no column "sentence2" \(data.text_pair\) \(did you mean "sentence_2"\?\)'):
        load_data(DataConfig(train=str(train), eval=str(other)), "text-classification")


def test_encoding_is_the_tokenizers_own_and_pads_per_batch(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(runs.save_bert(tmp_path))
    examples = Examples((["the cat is red", "a dog"], ["not red", "blue"]), [1, 0])
    encoded = encode_texts(examples, tokenizer, max_length=8)
    assert encoded[0]["input_ids"] == tokenizer("the cat is red", "not red", truncation=True, max_length=8)["input_ids"]
    assert len(encoded[0]["input_ids"]) == 8
    batch = pad_texts(tokenizer)(encoded)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["labels"].tolist() == [1, 0]
    numbers = pad_texts(tokenizer)(encode_texts(Examples(examples.inputs, [1.5, 0.0]), tokenizer, 8))
    assert numbers["labels"].dtype == torch.float32


def test_images_open_from_every_form(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    stored = path.read_bytes()
    for value in (pixels, str(path), stored, {"bytes": stored, "path": None}, Image.open(io.BytesIO(stored))):
        assert np.array_equal(np.asarray(to_image(value)), pixels)
    grey = ImageExamples(Examples((pixels[None, ..., :1],), [1]), "L")[0]
    assert (grey["image"].mode, grey["labels"]) == ("L", 1)


@pytest.mark.parametrize("value", [np.zeros((4, 4)), b"not an image", "no-such.png", 3])
def test_what_is_no_image_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="image"):
        to_image(value)


def test_the_sample_for_the_gap_is_the_same_each_time() -> None:
    rows = [{"labels": i} for i in range(20)]
    first, again = (list(head_of(rows, 5, seed=3)) for _ in range(2))
    assert first == again != list(head_of(rows, 5, seed=4))
    assert head_of(rows, 20, seed=3) is rows
