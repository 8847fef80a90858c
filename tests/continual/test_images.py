"""Images go the same way as texts."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rmlora.config import RunConfig
from rmlora.continual import train_continual
from tests import runs
from tests.continual.quick import quick


@pytest.mark.slow
def test_classes_of_images_are_learned_in_turn_and_a_replay_gives_the_same_bits(tmp_path: Path) -> None:
    model, images = runs.save_vit(tmp_path / "vit"), runs.save_digits(tmp_path / "digits.npz")
    told = {"model": str(model), "task": "image-classification", "data": {"train": str(images)}}
    config: RunConfig = quick(told, tmp_path / "out", continual={"classes": [["bright"], ["dark"], ["grey"]]})
    result = train_continual(config)
    assert result["tasks"] == [["bright"], ["dark"], ["grey"]]
    assert len(json.loads((tmp_path / "out" / "matrix.json").read_text())["accuracy"]) == 3
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {len(value) for name, value in saved.items() if "lora_A" in name} == {6}
    assert runs.call("replay", tmp_path / "out") == 0
    assert runs.call("inspect", tmp_path / "out") == 0
