"""What should learn and does not: each property broken on purpose, named after the thread it would have caught."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rmlora.config_source import resolve
from rmlora.doctor import trial
from rmlora.doctor.checks.learning import factors_moved
from rmlora.doctor.checks.steps import numbers_finite
from rmlora.errors import RmloraWarning
from rmlora.run.choice import complete
from rmlora.run.plan import make_plan
from rmlora.transforms import MaskDirections
from tests.doctor.cases import Ward, after_planning, troubles


def freeze(plan: Any, part: str) -> None:
    for name, parameter in plan.model.named_parameters():
        if part in name:
            parameter.requires_grad_(False)


def test_trl_3926_a_frozen_adapter(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    after_planning(monkeypatch, lambda plan: freeze(plan, "lora_"))
    found = ward.visit(method="lora")
    assert troubles(found)["B moved"] == "problem"
    assert "B moved in 0 of 12 modules" in found["B moved"].seen
    assert "no gradient reaches" in found["B moved"].seen
    assert "never saw an optimizer step" in found["warnings"].seen
    assert found["masked directions"].verdict == "skipped"


def test_trl_3926_some_frozen_modules_are_named(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    after_planning(monkeypatch, lambda plan: freeze(plan, "layer.1.attention.self.query.lora_B"))
    found = ward.visit()
    assert found["B moved"].verdict == "problem"
    assert found["B moved"].values["still_B"] == 1
    assert "layer.1.attention.self.query" in found["B moved"].seen


def test_a_factor_that_is_no_number_and_one_that_waits_too_long(ward: Ward) -> None:
    subject = ward.subject(method="lora")
    assert numbers_finite(subject).verdict == factors_moved(subject).verdict == "ok"
    name = subject.plan.pairs[3].name
    subject.steps[1].after[name][1][0, 0] = float("nan")
    broken = numbers_finite(subject)
    assert broken.verdict == "problem"
    assert f"{name} at step 2" in broken.seen
    for step in subject.steps:
        step.after = {name: (step.before[name][0], two[1]) for name, two in step.after.items()}
    found = factors_moved(subject)
    assert found.verdict == "warning"
    assert "A in 0; A stands still" in found.seen


def test_lerobot_3459_a_fresh_adapter_instead_of_the_one_to_go_on_with(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forget(plan: Any) -> None:
        plan.pairs[5].parameters[1].data.zero_()

    plan = make_plan(complete(resolve(ward.settings(method="lora"))))
    for pair in plan.pairs:
        pair.parameters[1].data.fill_(0.01)
    with pytest.warns(RmloraWarning, match="never saw an optimizer step"):
        plan.model.save_pretrained(tmp_path)
    assert ward.visit(init_adapter=str(tmp_path))["start"].verdict == "ok"
    after_planning(monkeypatch, forget)
    found = ward.visit(init_adapter=str(tmp_path))["start"]
    assert found.verdict == "problem"
    assert found.values["other"] == [plan.pairs[5].name]


def test_rm_lora_authors_a_frozen_head(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ward.visit(method_args={"frozen_head": True})["head learns"].verdict == "warning"
    after_planning(monkeypatch, lambda plan: freeze(plan, "classifier.modules_to_save"))
    found = ward.visit()
    assert found["head learns"].verdict == "problem"
    assert "frozen: base_model.model.classifier.modules_to_save.default.weight" in found["head learns"].seen


def test_a_head_without_gradient(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(plan: Any) -> None:
        head = plan.model.base_model.model.classifier
        forward = head.forward
        head.forward = lambda x: forward(x).detach() + 0 * x.sum(-1, keepdim=True)

    after_planning(monkeypatch, cut)
    found = ward.visit()["head learns"]
    assert found.verdict == "problem"
    assert "gradient zero or absent" in found.seen


def test_peft_1402_a_parameter_that_no_optimizer_holds(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    make = trial.make_trainer

    def forgetful(plan: Any, callbacks: Any) -> Any:
        trainer = make(plan, callbacks)
        create = trainer.create_optimizer

        def without_one(*args: Any) -> Any:
            optimizer = create(*args)
            del optimizer.param_groups[0]["params"][1]
            return optimizer

        trainer.create_optimizer = without_one
        return trainer

    monkeypatch.setattr(trial, "make_trainer", forgetful)
    found = ward.visit()
    assert found["optimizer"].verdict == "problem"
    (lost,) = found["optimizer"].values["lost"]
    assert lost.endswith("lora_B.default.weight")
    assert found["B moved"].values["still_B"] == 1


def test_deberta_77_numbers_that_are_none(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_weight(plan: Any) -> None:
        weight = next(
            p for n, p in plan.model.named_parameters() if "layer.0.attention.self.query.base_layer.weight" in n
        )
        with torch.no_grad():
            weight[0, 0] = float("inf")

    after_planning(monkeypatch, break_weight)
    found = ward.visit()
    assert found["steps"].verdict == "problem"
    assert "step 1 stopped with DivergedError: loss is nan" in found["steps"].seen
    assert "query" in found["steps"].seen
    assert "fp32" in found["steps"].remedy


def test_a_step_that_fails_is_a_finding_and_no_traceback(ward: Ward, tmp_path: Any) -> None:
    from tests import runs

    rows = [{"sentence1": "the cat is red " * 20, "sentence2": "a dog", "label": i % 2} for i in range(8)]
    data = {"train": str(runs.write_jsonl(tmp_path / "long.jsonl", rows)), "max_length": 128}
    found = ward.visit(data=data)
    assert troubles(found) == {"steps": "problem", "lengths": "problem"}
    assert "step 1 stopped with" in found["steps"].seen
    assert found["lengths"].values == {"longest": 85, "room": 64}
    assert "data.max_length=64" in found["lengths"].remedy


def stray_gradients(plan: Any) -> None:
    def add_some(parameter: Any) -> None:
        parameter.grad.add_(1e-3)

    for pair in plan.pairs:
        pair.parameters[1].register_post_accumulate_grad_hook(add_some)


def test_a_masked_direction_with_a_gradient(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    after_planning(monkeypatch, stray_gradients)
    found = ward.visit()["masked directions"]
    assert found.verdict == "problem"
    assert "a masked direction has a gradient" in found.seen


def test_unlearn_saliency_32_masked_directions_that_move(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskDirections, "project", lambda self, s, p, before, after, m, ctx: (after, m[1], s))
    found = ward.visit(method_args={"policy": "update"})["masked directions"]
    assert found.verdict == "problem"
    assert "a masked direction moved" in found.seen


def test_moments_of_masked_directions_count_under_the_policy_state(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    project = MaskDirections.project

    def forget_moments(self: Any, state: Any, pairs: Any, before: Any, after: Any, moments: Any, ctx: Any) -> Any:
        moved, _, state = project(self, state, pairs, before, after, moments, ctx)
        return moved, moments[1], state

    monkeypatch.setattr(MaskDirections, "project", forget_moments)
    found = ward.visit(method_args={"policy": "state"})["masked directions"]
    assert found.verdict == "problem"
    assert "of a masked direction changed" in found.seen
