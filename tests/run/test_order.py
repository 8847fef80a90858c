from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rmlora.config_source import resolve
from rmlora.train import train
from tests import runs


def test_predictions_keep_the_order_of_the_data_when_grouped_by_length(tmp_path: Path, bert: Path) -> None:
    texts = [f"the {'red ' * (i * 7 % 5)}cat" for i in range(16)]
    labels = [i // 4 % 2 for i in range(16)]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    file = runs.write_jsonl(tmp_path / "data.jsonl", rows)
    for seed in (0, 1):
        training = {"epochs": 1, "group_by_length": True, "eval_batch_size": 2, "seed": seed}
        train(resolve(runs.settings(bert, (file, file), tmp_path / str(seed), training=training)))
        assert np.array_equal(load_file(tmp_path / str(seed) / "predictions.safetensors")["labels"], labels)
