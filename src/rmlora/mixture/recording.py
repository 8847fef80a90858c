"""What a mixture adds to the row of an epoch: how much each expert was heard, and the gates' temperature."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from rmlora.experts import Mixture
from rmlora.mixture.plan import MixtureRun
from rmlora.run.folder import RunFolder


class RecordGates(TrainerCallback):  # type: ignore[misc]
    """Complete the row that `RecordEpochs`, which stands before, has just written.

    With gates: `gate_<expert>`, its mean gate over blocks and held-out examples, `temperature`, the mean over blocks,
    and `gates`, `(blocks, N)`. With the best expert: `expert`, its name.

    Args:
        folder: of the run.
        run: what is trained.
    """

    def __init__(self, folder: RunFolder, run: MixtureRun) -> None:
        self.folder = folder
        self.run = run

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
        """Forget what was evaluated before the held-out part, which comes last."""
        found = self._measure()
        if "eval_eval_loss" in metrics:
            rows = self.folder.rows()
            self.folder.write_rows([*rows[:-1], rows[-1] | found])

    def _measure(self) -> dict[str, Any]:
        mixture = self.run.mixture
        if mixture is not None:
            return measure_gates(mixture)
        return {"expert": self.run.used[0].name} if self.run.plan.config.mixture.combine == "best" else {}


def measure_gates(mixture: Mixture) -> dict[str, Any]:
    """Measure the gates over what was evaluated since the last call.

    Args:
        mixture: its sums are set back.
    """
    usage = mixture.take_usage()
    temperatures = mixture.temperatures
    means = usage.mean(0).tolist()
    return {
        **{f"gate_{expert.name}": round(mean, 6) for expert, mean in zip(mixture.experts, means, strict=True)},
        "temperature": round(sum(temperatures) / len(temperatures), 6),
        "gates": [[round(value, 6) for value in row] for row in usage.tolist()],
    }
