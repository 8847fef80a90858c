"""Where nothing is wrong the doctor finds nothing, looks at the run itself, and leaves no trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.config_source import resolve
from rmlora.doctor.examine import CHECKS, examine
from rmlora.doctor.subject import Subject
from rmlora.doctor.trial import try_run
from rmlora.methods import METHODS
from rmlora.train import train
from tests import questions, runs
from tests.doctor.cases import Ward, by_name, troubles


def test_a_healthy_run_has_no_trouble(healthy: Subject) -> None:
    found = by_name(examine(healthy))
    assert not troubles(found)
    assert len(found) == len(CHECKS)
    looked_at = {name for name, finding in found.items() if finding.verdict == "ok"}
    assert found.keys() - looked_at == {"padding", "start"}, "all examples have one length, and the adapter is new"
    assert "no movement and no change of the optimizer's moments" in found["masked directions"].seen
    assert found["masked directions"].values["moved_share"] == 0


def test_its_steps_are_those_of_the_run(ward: Ward, tmp_path: Path) -> None:
    files = runs.save_pairs(tmp_path, train=24)
    config = runs.settings(ward.models["bert"], files, tmp_path / "out", training={"epochs": 1})
    subject = try_run(resolve(config))
    train(resolve(config))
    assert runs.rows(tmp_path / "out")[0]["step"] == 3
    assert np.mean(subject.losses) == pytest.approx(runs.rows(tmp_path / "out")[0]["running_loss"], abs=1e-6)


def test_the_first_steps_may_warm_up_and_cross_epochs_and_nothing_is_evaluated_between(ward: Ward) -> None:
    subject = ward.subject(training={"epochs": 4, "batch_size": 32, "warmup_steps": 5})
    assert [step.number for step in subject.steps] == [0, 1, 2]
    assert [step.lr for step in subject.taken] == pytest.approx([0.0, 2e-4, 4e-4])
    assert not troubles(by_name(examine(subject)))


def test_a_run_of_one_step_is_looked_at_as_far_as_it_goes(ward: Ward) -> None:
    subject = ward.subject(training={"epochs": 1, "batch_size": 64})
    assert len(subject.taken) == 1
    assert not troubles(by_name(examine(subject)))


def test_peft_1120_autocast_and_accumulation_are_no_trouble(ward: Ward) -> None:
    training = {"precision": "bf16", "gradient_accumulation_steps": 4, "batch_size": 2, "gradient_checkpointing": True}
    found = ward.visit(training=training, method_args={"weight": 1e-2, "preset": "authors"})
    assert not troubles(found)
    assert found["penalty"].values["times"] == pytest.approx(1, abs=1e-5)


def test_questions_and_images_are_looked_at_too(ward: Ward, tmp_path: Path) -> None:
    asked = questions.settings(ward.models["bert"], questions.save_squad(tmp_path), tmp_path / "out")
    found = by_name(examine(try_run(resolve(asked))))
    assert not troubles(found)
    assert found["metric"].values.keys() == {"loss", "f1"}
    images: dict[str, Any] = runs.settings(runs.save_vit(tmp_path / "vit"), (tmp_path, tmp_path), tmp_path / "out")
    images |= {"task": "image-classification", "data": {"train": str(runs.save_digits(tmp_path / "digits.npz"))}}
    found = by_name(examine(try_run(resolve(images))))
    assert not troubles(found)
    assert found["tokens"].verdict == found["lengths"].verdict == "skipped"


def test_a_start_that_moves_the_base_reloads_as_well(ward: Ward) -> None:
    found = ward.visit(lora={"init_lora_weights": "pissa"})
    assert not troubles(found)
    assert found["reload"].values["gap"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "rm-lora"])
def test_no_method_is_a_problem(method: str, ward: Ward) -> None:
    found = ward.visit(method=method)
    assert "problem" not in troubles(found).values()
    penalised = {"r-lora", "adalora", "clora", "bilora"}
    assert (found["penalty"].verdict != "skipped") == (method in penalised)
    if method in penalised:
        assert found["penalty"].values["times"] == pytest.approx(1, abs=1e-4)
