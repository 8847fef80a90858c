"""The ensemble of a run: how much better the average of its instances answers the held-out examples."""

from __future__ import annotations

from typing import Any

from rmlora.ensemble import Ensemble
from rmlora.files import write_bytes
from rmlora.run.folder import RunFolder
from rmlora.run.plan import Plan
from rmlora.run.predicting import judge, predict_examples


def evaluate_ensemble(plan: Plan, folder: RunFolder, steps: int) -> dict[str, Any]:
    """Evaluate the ensemble that `evaluation.ensemble` asks for, with the weights the run leaves.

    Args:
        plan: of a run that is trained; its model is left in evaluation mode.
        folder: of the run; predictions_ensemble.safetensors is written.
        steps: optimizer steps of the run.

    Returns:
        `ensemble`: instances, what is averaged, every metric of the held-out part, and of classifiers `ece`, `brier`
        and the bins of the reliability diagram; nothing where none was asked for.
    """
    from safetensors.numpy import save

    settings = plan.config.evaluation
    if not settings.ensemble:
        return {}
    ensemble = Ensemble(
        plan.model,
        settings.ensemble,
        plan.config.training.seed,
        average=settings.average,
        chunk=settings.chunk,
        step=steps,
    )
    encoded = plan.encoded["eval"]
    judged = judge(*predict_examples(ensemble, encoded, plan.processor, plan.config), encoded, plan.config)
    write_bytes(folder.joint_predictions, save(judged.arrays))
    told = {"instances": settings.ensemble, "average": settings.average, "path": ensemble.path}
    return {"ensemble": told | judged.measures | judged.reliability}
