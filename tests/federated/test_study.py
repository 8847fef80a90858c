from pathlib import Path

from rmlora.compare.running import compare
from tests.compare import studies


def test_a_study_compares_what_is_averaged_and_keeps_what_it_costs(
    bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    told = {
        "mode": "federated",
        "federated": {"clients": 3, "rounds": 2, "alpha": 5.0},
        "methods": [
            {"name": "lora", "label": "RoLoRA"},
            {"name": "lora", "label": "FedAvg", "federated": {"factors": "both"}},
        ],
        "seeds": [0],
        "learning_rates": [1e-2],
        "training": {"batch_size": 8, "train_eval_examples": 0},
    }
    rows = {row["label"]: row for row in compare(studies.study(bert, files, tmp_path / "out", **told), workers=0)}
    exact, averaged = rows["RoLoRA"]["last"], rows["FedAvg"]["last"]
    assert exact["epoch"] == averaged["epoch"] == 2
    assert exact["relative_averaging_error"] < 1e-6 < averaged["relative_averaging_error"]
    assert exact["bytes_up"] < averaged["bytes_up"]
