"""Every method side by side on the demo's task: writes model, images and a study, all offline, for `rmlora compare`.

    python examples/digits_study.py digits
    rmlora compare digits/study.yaml --workers 2
    rmlora report digits/study

The base is the demo's: a small ViT that knows digits 0 to 4; the task is to tell digits 5 to 9 from sixteen examples of
each. One learning rate stands for all adapters and nothing is tuned, so the study shows that everything runs together,
and not which method is best.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from rmlora.demo.base_model import load_base_model
from rmlora.demo.digits import Examples, draw, load_digits
from rmlora.demo.recipe import Recipe
from rmlora.methods import METHODS

SHOTS, DRAWN_WITH = 16, 0
EPOCHS, BATCH_SIZE, R = 40, 16, 4
RATES = {"full": 2e-3, "vera": 5e-2, "lora-plus": 1e-3}  # LoRA+ multiplies that of B by 16
RATE = 8e-3
KNOBS: dict[str, dict[str, Any]] = {  # what the defaults leave to long training or wide layers
    "rm-lora": {"directions": 2},
    "gm-lora": {"directions": 2},
    "adalora": {"target_r": R},
    "sora": {"threshold": 1e-3},
    "lora-dropout": {"instances": 2},
    "clora": {"dimensions": 16},
    "delta-lora": {"start_step": 50},
    "rac-lora": {"blocks": 4, "block_steps": 50},
    "beamlora": {"interval": 50},
}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the model, the images and study.yaml")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    digits = load_digits()
    base, _ = load_base_model(digits, Recipe().pretraining)
    write_model(base, digits.first, given.folder / "model")
    write_images(draw(digits.pool, SHOTS, DRAWN_WITH), digits.first, given.folder / "train")
    write_images(digits.test, digits.first, given.folder / "test")
    told = study(given.folder.resolve(), given.seeds)
    (given.folder / "study.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    print(f"rmlora compare {given.folder / 'study.yaml'} --workers 2")


def write_model(base: Any, first: Examples, folder: Path) -> None:
    """Save the body of the ViT, without its head, and a processor that undoes what `write_images` does."""
    from transformers import ViTImageProcessor

    base.vit.save_pretrained(folder)
    low, high = float(first.images.min()), float(first.images.max())
    scale = {"do_rescale": True, "rescale_factor": (high - low) / 255, "do_normalize": True}
    processor = ViTImageProcessor(do_resize=False, image_mean=[-low], image_std=[1.0], **scale)
    processor.save_pretrained(folder)


def write_images(examples: Examples, first: Examples, folder: Path) -> None:
    """Write each image as a PNG of 8 x 8 grey pixels into a folder named by its digit."""
    low, high = first.images.min(), first.images.max()
    pixels = ((examples.images - low) / (high - low) * 255).round().clamp(0, 255).byte()
    for number, (image, label) in enumerate(zip(pixels, examples.labels.tolist(), strict=True)):
        place = folder / str(label + 5)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy(), mode="L").save(place / f"{number:04}.png")


def study(folder: Path, num_seeds: int) -> dict[str, Any]:
    """Return the study: every method, one rate each."""
    return {
        "name": "digits",
        "models": [str(folder / "model")],
        "tasks": [
            {
                "name": "digits",
                "task": "image-classification",
                "data": {"train": str(folder / "train"), "eval": str(folder / "test")},
                "training": {"metric": "accuracy"},
            }
        ],
        "methods": [{"name": name, "label": name, "args": KNOBS.get(name, {})} for name in METHODS],
        "ranks": [R],
        "seeds": list(range(num_seeds)),
        "learning_rates": {name: [RATES.get(name, RATE)] for name in METHODS},
        "lora": {"lora_alpha": 2 * R, "target_modules": "all-linear"},
        "training": {"epochs": EPOCHS, "batch_size": BATCH_SIZE},
        "output": str(folder / "study"),
    }


if __name__ == "__main__":
    main()
