import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import set_seed

from rmlora import modeling
from rmlora.config_source import resolve
from rmlora.run import sources as room
from rmlora.run.inference import count_inference
from rmlora.run.plan import Counts
from rmlora.run.sources import KeptSources, Sources
from rmlora.train import train
from tests import runs


@pytest.mark.parametrize("save", [runs.save_bert, runs.save_deberta, runs.save_vit])
def test_a_kept_model_is_the_one_loading_gives_whatever_the_seed(tmp_path: Path, save: Any) -> None:
    model = save(tmp_path / "model")
    is_image = save is runs.save_vit
    files = runs.save_pairs(tmp_path)
    settings = runs.settings(model, files, tmp_path / "run")
    if is_image:
        settings |= {"task": "image-classification", "data": {"train": str(runs.save_digits(tmp_path / "d.npz"))}}
    kept = KeptSources()
    for seed in (3, 4, 3):
        config = resolve(settings | {"training": {"seed": seed}})
        data = kept.data(config)
        fresh, after = Sources().model(config, data, set_seed), torch.get_rng_state()
        copied = kept.model(config, data, set_seed)
        assert torch.equal(torch.get_rng_state(), after)
        assert runs.equal(copied.model.state_dict(), fresh.model.state_dict())
        assert copied.fresh == fresh.fresh != ()
        torch.nn.init.zeros_(next(copied.model.parameters()).data)  # what a run does to its copy stays there
    assert list(kept.models.values()) != [None]


@pytest.mark.slow
def test_kept_sources_read_and_load_once_and_change_no_number(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    for name in ("load_model", "load_data"):
        own = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *a, own=own, name=name: loads.append(name) or own(*a))
    kept = KeptSources()
    for method, seed in (("lora", 0), ("rm-lora", 0), ("full", 1), ("lora", 1)):
        changes = {"method": method, "training": {"epochs": 1, "seed": seed}}
        train(resolve(runs.settings(bert, files, tmp_path / f"kept-{method}-{seed}", **changes)), sources=kept)
    assert sorted(loads) == ["load_data", "load_model"]
    for method, seed in (("full", 1), ("lora", 1)):
        changes = {"method": method, "training": {"epochs": 1, "seed": seed}}
        train(resolve(runs.settings(bert, files, tmp_path / "fresh", **changes)), overwrite=True)
        assert runs.rows(tmp_path / "fresh") == runs.rows(tmp_path / f"kept-{method}-{seed}")


def test_a_model_whose_head_cannot_be_drawn_again_is_loaded_each_time(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "draw_heads", lambda loaded: None)
    kept = KeptSources()
    heads = []
    for seed in (0, 1):
        config = resolve(runs.settings(bert, files, tmp_path / "run", training={"seed": seed}))
        loaded = kept.model(config, kept.data(config), set_seed)
        fresh = modeling.load_model  # what is compared with
        set_seed(seed)
        assert runs.equal(loaded.model.state_dict(), fresh(config, kept.data(config)).model.state_dict())
        heads.append(loaded.model.classifier.weight)
    assert not torch.equal(*heads)


@pytest.mark.parametrize("task", ["text-classification", "text-regression"])
def test_predictions_are_those_of_the_last_epoch(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], task: str
) -> None:
    changes = {"task": task, "training": {"epochs": 2, "save": "best"}}
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", **changes)))
    found = load_file(tmp_path / "run" / "predictions.safetensors")
    labels = [row["label"] for row in runs.pairs(16, seed=1)]
    assert found["labels"].tolist() == labels
    if task == "text-classification":
        assert found["logits"].shape == (16, 2)
        assert found["correct"].mean() == result["last"]["eval_accuracy"]
        assert (found["correct"] == (found["logits"].argmax(1) == labels)).all()
    else:
        assert ((found["values"] - labels) ** 2).mean() == pytest.approx(result["last"]["eval_loss"], rel=1e-5)


def test_inference_counts_the_directions_that_are_left(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", method="lora", training={"epochs": 1})))
    parameters = result["parameters"]
    assert parameters["inference"] == parameters["trainable"] == parameters["adapter"] + parameters["head"]
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file

    path = tmp_path / "run" / "adapter_model.safetensors"
    tensors = load(path)
    name = next(n for n in tensors if ".lora_A." in n)
    tensors[name][1:] = 0
    save_file(tensors, path)
    B = tensors[name.replace("lora_A", "lora_B")]
    gone = 3 * (tensors[name].shape[1] + B.shape[0])
    counted = count_inference(tmp_path / "run", Counts(parameters["adapter"], parameters["head"], 0, 0))
    assert counted["inference"] == parameters["inference"] - gone
    assert json.loads((tmp_path / "run" / "result.json").read_text())["parameters"] == parameters
