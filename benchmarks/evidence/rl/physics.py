"""Two Gymnasium tasks whose physics changes after pre-training, PPO's settings for each, and their evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TransformReward
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

WIDTHS = (256, 256)
ENVS = 8
# Evaluation episodes begin in states of their own, the same for every method, seed and moment.
FIRST_EVALUATION_SEED = 10_000


@dataclass(frozen=True)
class Task:
    """A task, how its physics changes, and what PPO is told.

    Attributes:
        env_id: Gymnasium's name.
        changes: attributes of the environment, and their values after the change.
        pretraining_steps: environment steps of pre-training.
        adapting_steps: environment steps of adaptation.
        reward_scale: factor on training rewards. It keeps the value loss small, so that PPO's clipping of all gradients
            together does not shrink the policy's; evaluation is unscaled.
        rates: learning rates of the policy network that every method tries.
        ppo: arguments of stable-baselines3's PPO.
    """

    env_id: str
    changes: dict[str, float]
    pretraining_steps: int
    adapting_steps: int
    reward_scale: float
    rates: tuple[float, ...]
    ppo: dict[str, Any]


TASKS = {
    "CartPole": Task(
        env_id="CartPole-v1",
        changes={"length": 0.15, "masspole": 0.5, "gravity": 20.0},
        pretraining_steps=81_920,
        adapting_steps=10_240,
        reward_scale=0.1,
        rates=(1e-3, 3e-3, 1e-2),
        ppo={"n_steps": 64, "batch_size": 256, "n_epochs": 8, "gamma": 0.98, "gae_lambda": 0.9},
    ),
    "Pendulum": Task(
        env_id="Pendulum-v1",
        changes={"m": 2.0, "g": 12.0},
        pretraining_steps=81_920,
        adapting_steps=10_240,
        reward_scale=0.05,
        rates=(3e-4, 1e-3, 3e-3),
        ppo={"n_steps": 128, "batch_size": 256, "n_epochs": 8, "gamma": 0.9, "gae_lambda": 0.95},
    ),
}


def make_env(task: Task, changed: bool, scaled: bool = False) -> gymnasium.Env[Any, Any]:
    """One environment with the old or the changed physics."""
    env = gymnasium.make(task.env_id, disable_env_checker=True)
    inner: Any = env.unwrapped
    for name, value in task.changes.items() if changed else ():
        if not hasattr(inner, name):
            raise AttributeError(f"{task.env_id} has no {name!r} to change")
        setattr(inner, name, value)
    if hasattr(inner, "polemass_length"):  # CartPole derives these once, when it is made
        inner.total_mass = inner.masspole + inner.masscart
        inner.polemass_length = inner.masspole * inner.length
    return TransformReward(env, lambda reward: task.reward_scale * float(reward)) if scaled else env


def training_envs(task: Task, changed: bool) -> VecEnv:
    """The environments PPO learns from."""
    return DummyVecEnv([lambda: make_env(task, changed, scaled=True)] * ENVS)


def evaluate(model: PPO, task: Task, episodes: int, changed: bool = True) -> float:
    """Mean return of the deterministic policy over episodes with fixed seeds; draws nothing from a global generator."""
    envs = [make_env(task, changed) for _ in range(episodes)]
    observations = [env.reset(seed=FIRST_EVALUATION_SEED + k)[0] for k, env in enumerate(envs)]
    returns: NDArray[np.float64] = np.zeros(episodes)
    live = list(range(episodes))
    while live:
        actions, _ = model.predict(np.stack([observations[k] for k in live]), deterministic=True)
        running = []
        for k, action in zip(live, actions, strict=True):
            observations[k], reward, terminated, truncated, _ = envs[k].step(action)
            returns[k] += float(reward)
            if not (terminated or truncated):
                running.append(k)
        live = running
    return float(returns.mean())
