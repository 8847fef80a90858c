from dataclasses import replace
from pathlib import Path

import pytest

import rmlora
from rmlora.compare.cells import final_cells, only_rates
from rmlora.errors import ConfigError
from rmlora.reproduce.estimate import SHAPES, SIZES, Shape, Size, count_trainable, estimate_seconds
from rmlora.reproduce.presets import DEBERTA, FIVE_EPOCHS, PRESETS, SORA_THRESHOLDS, choose_preset
from rmlora.reproduce.studies import studies_of
from tests import tiny


def cells_of(name: str) -> list:
    return [cell for study in studies_of(PRESETS[name], Path("out")) for cell in final_cells(study, only_rates(study))]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_study_with_three_seeds_and_a_known_size(name: str) -> None:
    cells = cells_of(name)
    assert {cell.seed for cell in cells} == {0, 1, 2}
    assert len({cell.id for cell in cells}) == len(cells)
    assert {cell.group.task for cell in cells} <= SIZES.keys()
    assert {cell.group.model for cell in cells} <= SHAPES.keys()


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_published_number_of_a_method_that_is_there_has_its_cells(name: str) -> None:
    there = {(cell.group.label, cell.group.r, cell.group.task) for cell in cells_of(name)}
    labels = {label for label, _, _ in there}
    wanted = {(p.label, p.r, p.task) for p in PRESETS[name].published if p.label in labels}
    assert wanted <= there


def test_table_1_has_the_papers_hyperparameters() -> None:
    for cell in cells_of("table1"):
        training, lora, task = cell.config.training, cell.config.lora, cell.group.task
        assert training.lr == (1e-5 if cell.group.label == "Full FT" else 1e-3)
        assert training.epochs == (5 if task in FIVE_EPOCHS else 3)
        assert (training.batch_size, training.lr_scheduler, training.warmup_steps) == (32, "linear", 0)
        assert cell.config.data.max_length == 128
        if cell.group.r in (4, 8) and cell.group.label != "SoRA":
            assert lora.lora_alpha == {4: 16, 8: 32}[cell.group.r]
        if cell.group.label == "SoRA":
            assert cell.config.method_args["threshold"] == SORA_THRESHOLDS[task]


def test_trained_parameters_are_those_of_table_1() -> None:
    shape = SHAPES[DEBERTA]
    counts = {r: count_trainable(shape, 2, r, "whole") for r in (4, 8, 16)}
    assert {r: round(count / 1e6, 2) for r, count in counts.items() if count} == {4: 1.26, 8: 1.92, 16: 3.25}


def test_shapes_count_what_peft_trains() -> None:
    deberta = Shape(16, 2, 24, has_pooler=True)
    model = tiny.adapted("deberta")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count_trainable(deberta, tiny.LABELS, 4, "whole") == trained
    model = tiny.adapted("deberta")
    gates = sum(pair.r for pair in rmlora.attach(model, rmlora.METHODS["sora"].build()).pairs)
    assert count_trainable(deberta, tiny.LABELS, 4, "whole", "sora") == trained + gates
    gpt2 = tiny.adapted("gpt2", target_modules=["c_attn", "c_proj", "c_fc"])
    trained = sum(p.numel() for p in gpt2.parameters() if p.requires_grad)
    assert Shape(16, 2, 64, fused=True).adapter(4) == trained


def test_a_layer_alone_trains_its_factors_and_bias() -> None:
    shape = Shape(768, 12, 3072)
    assert count_trainable(shape, 100, 64, "head") == 64 * 868 + 100
    assert count_trainable(shape, 100, None, "head") == 768 * 100 + 100


def test_a_run_takes_longer_with_more_epochs_and_less_on_a_faster_machine() -> None:
    shape, size = Shape(768, 12, 3072), Size(1000, 100, 64)
    one, three = (estimate_seconds(shape, size, {"epochs": n}, "whole", 1e12, False) for n in (1, 3))
    assert three == pytest.approx(3 * one)
    assert estimate_seconds(shape, size, {"epochs": 1}, "whole", 2e12, False) == pytest.approx(one / 2)
    assert estimate_seconds(shape, size, {"epochs": 1}, "whole", 1e12, True) > one


def test_only_the_layer_is_adapted_in_figures_1_and_2_and_table_5() -> None:
    for name in ("table5", "figure1", "figure2"):
        cells = cells_of(name)
        assert {cell.config.scope for cell in cells} == {"head"}
        assert {cell.config.training.epochs for cell in cells} == {60}
        assert {cell.group.r for cell in cells} - {None} == {32, 64, 80}
        assert {cell.config.lora.lora_alpha for cell in cells if cell.group.r} == {32, 64, 80}


def test_a_preset_whose_task_is_not_there_says_so() -> None:
    study = PRESETS["table5"].studies[0]
    other = replace(PRESETS["table5"], studies=({**study, "tasks": [{"name": "t", "task": "time-travel"}]},))
    with pytest.raises(ConfigError, match="table5 needs the task time-travel"):
        studies_of(other, Path("out"))


def test_a_name_that_is_none_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'"figure3" to reproduce \(did you mean "figure[12]"'):
        choose_preset("figure3")
