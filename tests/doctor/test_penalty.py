"""A penalty that is absent, doubled, or something else than it says."""

from typing import Any

import pytest
import torch

from rmlora.doctor.checks.penalty import judge
from rmlora.doctor.penalties import expected_gradients
from rmlora.doctor.subject import Subject
from rmlora.pairs import Factors
from rmlora.transforms import AddOrthogonality
from rmlora.transforms.add_orthogonality import orthogonality_gradient
from tests.doctor.cases import Ward


def times(factor: float) -> Any:
    adds = AddOrthogonality.adds

    def changed(self: Any, state: Any, pairs: Any, ctx: Any) -> Any:
        return [Factors(factor * f.A, factor * f.B) for f in adds(self, state, pairs, ctx)]

    return changed


def test_trainer_2107_a_penalty_counted_once_per_micro_batch(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddOrthogonality, "adds", times(4))
    found = ward.visit(method="r-lora")["penalty"]
    assert found.verdict == "problem"
    assert found.values["times"] == pytest.approx(4)
    assert "added 4 times" in found.seen


def test_peft_432_a_penalty_that_silently_never_ran(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddOrthogonality, "adds", times(0))
    found = ward.visit()["penalty"]
    assert found.verdict == "problem"
    assert "nothing of its gradient reached the optimizer" in found.seen


def test_a_penalty_that_is_another(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    adds = AddOrthogonality.adds

    def crooked(self: Any, state: Any, pairs: Any, ctx: Any) -> Any:
        found = adds(self, state, pairs, ctx)
        return [Factors(f.A + 0.1 * f.A.norm() * torch.randn_like(f.A), f.B) for f in found]

    monkeypatch.setattr(AddOrthogonality, "adds", crooked)
    assert ward.visit(method="r-lora")["penalty"].verdict == "problem"


def test_a_penalty_that_drowns_the_task_or_is_lost_in_it(ward: Ward) -> None:
    for share, verdict in ((1e3, "warning"), (1.0, "ok"), (1e-8, "warning"), (float("inf"), "ok")):
        row = {"size": 1.0, "times": 1.0, "error": 0.0, "share": share}
        assert judge("AddOrthogonality", [row]).verdict == verdict
    found = ward.visit(method_args={"weight": 1e3})["penalty"]
    assert found.verdict == "warning"
    assert found.remedy.startswith("change the weight")


def test_no_penalty_is_skipped_and_the_papers_mask_is_told(ward: Ward) -> None:
    found = ward.visit(method_args={"weight": 0.0})
    assert found["penalty"].verdict == "skipped"
    masked = found["masked directions"]
    assert masked.verdict == "ok"
    assert 0 < masked.values["moved_share"] < 0.5
    assert "of all movement is theirs, by momentum" in masked.seen


def test_what_cannot_be_told_apart_is_not_judged(ward: Ward) -> None:
    found = ward.visit(method_args={"max_norm": 1.0}, training={"max_grad_norm": 0})["penalty"]
    assert found.verdict == "skipped"
    assert "ClipByGlobalNorm rewrites gradients" in found.seen


@pytest.mark.parametrize("norm", ["squared", "frobenius"])
@pytest.mark.parametrize("gram", ["whole", "off_diagonal"])
def test_the_loss_has_the_links_own_gradient(norm: Any, gram: Any, healthy: Subject) -> None:
    link = AddOrthogonality(0.3, norm=norm, gram=gram, reduction="mean")
    step, pairs = healthy.steps[-1], healthy.plan.pairs
    step.kept.get(pairs[0].name)
    for name, two in expected_gradients((link,), pairs, step, 0).items():
        A, B = (value.double()[None] for value in step.before[name])
        closed = orthogonality_gradient(Factors(A, B), 0.3 / (2 * len(pairs)), norm=norm, gram=gram)
        kept = step.kept[name]
        assert torch.allclose(two[0], closed.A[0] * kept.A[:, None], atol=1e-12)
        assert torch.allclose(two[1], closed.B[0] * kept.B, atol=1e-12)
