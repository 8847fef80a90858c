from pathlib import Path

import pytest
import yaml

from tests import killing, runs

LEFT = ("adapter_model.safetensors", "metrics.jsonl", "predictions.safetensors")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_resumed_leaves_the_bits_of_one_never_killed(
    bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    told = {"scope": "federated", "federated": {"clients": 2, "rounds": 4, "alpha": 5.0}, "training": {"epochs": 3}}
    for name in ("whole", "killed"):
        settings = runs.settings(bert, files, tmp_path / name, **told)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    code, changes = killing.run(["train", tmp_path / "whole.yaml"], tmp_path / "whole")
    assert code == 0
    out, killed = tmp_path / "killed", 0
    for change in range(3, changes, 5):
        resume = ["--resume"] if (out / "config.yaml").is_file() else []
        code, _ = killing.run(["train", tmp_path / "killed.yaml", *resume], out, killing.Moment(change % 12, 0.0))
        killed += code < 0
        killing.assert_whole(out)
        if code == 0:
            break
    resume = ["--resume"] if (out / "config.yaml").is_file() else []
    assert killing.run(["train", tmp_path / "killed.yaml", *resume], out)[0] == 0
    assert killed >= 3
    for name in LEFT:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
