"""Pre-training a policy by PPO, and adapting it: full fine-tuning, LoRA or RM-LoRA on the policy network's layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from physics import WIDTHS, Task, evaluate, training_envs
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO
from torch import nn

import rmlora
from rmlora.handle import Attached
from rmlora.transform import Transform

POLICY_LAYERS = r"mlp_extractor\.policy_net\.(0|2)|action_net"
CRITIC = ("mlp_extractor.value_net.", "value_net.", "log_std")
CRITIC_RATE = 1e-3
PRETRAINING_RATE = 1e-3
EVALUATIONS = 10
CURVE_EPISODES = 20
FINAL_EPISODES = 50


@dataclass(frozen=True)
class Adapter:
    """How the policy network is adapted.

    Attributes:
        r: LoRA's rank; 0 trains the network's own weights.
        method: what is attached to the adapter; None attaches nothing.
    """

    r: int = 0
    method: Transform | None = None


class FixedRates(PPO):
    """PPO whose optimizer keeps the learning rates of its groups; the critic's is the same for every method."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave the rates as they are."""


def pretrain(task: Task, seed: int, path: Path) -> dict[str, float]:
    """Train a policy on the old physics, its rate falling to 0, write its weights, return how good it is."""
    options: dict[str, Any] = {"net_arch": list(WIDTHS)}
    envs = training_envs(task, changed=False)
    rate = lambda left: PRETRAINING_RATE * left  # noqa: E731
    model = PPO("MlpPolicy", envs, learning_rate=rate, policy_kwargs=options, seed=seed, device="cpu", **task.ppo)
    model.learn(task.pretraining_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.policy.state_dict().items()}, path)
    return {"old": evaluate(model, task, FINAL_EPISODES, False), "changed": evaluate(model, task, FINAL_EPISODES)}


def load(task: Task, weights: Path, seed: int) -> FixedRates:
    """A pre-trained policy on the changed physics."""
    options: dict[str, Any] = {"net_arch": list(WIDTHS)}
    model = FixedRates(
        "MlpPolicy", training_envs(task, True), policy_kwargs=options, seed=seed, device="cpu", **task.ppo
    )
    model.policy.load_state_dict(load_file(weights))
    return model


def put_on(model: FixedRates, adapter: Adapter, rate: float, seed: int, fast: bool = True) -> Attached | None:
    """Adapt the policy network as told, with an optimizer of its own; critic and action noise learn in every method.

    The generators begin anew behind the adapter, so that methods of one seed draw the same actions and batches.
    """
    policy = model.policy
    if adapter.r:
        config = LoraConfig(r=adapter.r, lora_alpha=2 * adapter.r, target_modules=POLICY_LAYERS)
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy)
    for name, parameter in policy.named_parameters():
        if name.startswith(CRITIC):
            parameter.requires_grad_(True)
    own = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    policy.optimizer = torch.optim.Adam(
        [
            {"params": [p for name, p in own if not name.startswith(CRITIC)], "lr": rate},
            {"params": [p for name, p in own if name.startswith(CRITIC)], "lr": CRITIC_RATE},
        ],
        eps=1e-5,
    )
    handle = None
    if adapter.method is not None:
        handle = rmlora.attach(policy, adapter.method, optimizer=policy.optimizer, seed=seed, fast=fast)
    model.set_random_seed(seed)
    return handle


def adapt(task: Task, weights: Path, adapter: Adapter | None, rate: float, seed: int) -> dict[str, Any]:
    """Adapt a pre-trained policy to the changed physics; None leaves it as it is.

    Returns:
        `final`: mean return of 50 episodes at the end; `curve`: of 20 episodes, before and at ten moments; `area`: the
        area under it over its length, a mean return; `trained`: parameters of the policy network that learn.
    """
    model = load(task, weights, seed)
    if adapter is None:
        final = evaluate(model, task, FINAL_EPISODES)
        return {"final": final, "area": evaluate(model, task, CURVE_EPISODES), "trained": 0}
    handle = put_on(model, adapter, rate, seed)
    curve = [evaluate(model, task, CURVE_EPISODES)]
    for _ in range(EVALUATIONS):
        model.learn(task.adapting_steps // EVALUATIONS, reset_num_timesteps=False)
        curve.append(evaluate(model, task, CURVE_EPISODES))
    area = (sum(curve) - (curve[0] + curve[-1]) / 2) / EVALUATIONS
    return {
        "final": evaluate(model, task, FINAL_EPISODES),
        "area": area,
        "curve": [round(value, 2) for value in curve],
        "trained": count(model.policy),
        **({} if handle is None else told_by(handle)),
    }


def count(policy: nn.Module) -> int:
    """Parameters of the policy network that learn."""
    own = (p for name, p in policy.named_parameters() if p.requires_grad and not name.startswith(CRITIC))
    return sum(p.numel() for p in own)


def told_by(handle: Attached) -> dict[str, Any]:
    """What the method says of itself at the end: steps, kept directions, penalty by layer."""
    metrics = handle.metrics()
    layers = {name: [m["kept"], m["r"], round(m["penalty"], 3)] for name, m in metrics["modules"].items()}
    return {"optimizer_steps": metrics["step"], "layers": layers}
