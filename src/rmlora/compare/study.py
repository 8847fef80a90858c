"""What a study is told: methods, tasks, models, ranks, seeds, and equally many learning rates for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rmlora.compare.slurm_settings import SlurmSettings
from rmlora.config import (
    DataConfig,
    EvaluationSettings,
    HeadSettings,
    LoraSettings,
    Scope,
    Task,
    TrainingConfig,
)
from rmlora.sections import (
    ContinualSettings,
    DerivativeFreeSettings,
    FederatedSettings,
    MixtureSettings,
    Section,
)


class MethodEntry(Section):
    """One method, or a grid over its knobs."""

    name: str = Field(description="A method listed by `rmlora methods`.")
    args: dict[str, Any] = Field(
        default_factory=dict, description="Its knobs; a knob given a list makes one method of each value."
    )
    lora: LoraSettings = Field(
        default_factory=LoraSettings,
        description="Adapter settings of this method alone, over the common ones, e.g. {use_dora: true}; without r.",
    )
    mixture: dict[str, Any] = Field(default_factory=dict, description="Of this method alone; for mode mixture.")
    continual: dict[str, Any] = Field(default_factory=dict, description="Of this method alone; for mode continual.")
    federated: dict[str, Any] = Field(default_factory=dict, description="Of this method alone; for mode federated.")
    derivative_free: dict[str, Any] = Field(
        default_factory=dict, description="Of this method alone; for mode derivative-free."
    )
    label: str | None = Field(default=None, description="What rows and tables call it; default: the name.")

    @field_validator("args", mode="before")
    @classmethod
    def _none_given(cls, value: Any) -> Any:
        return {} if value is None else value


class TaskEntry(Section):
    """One task: its data, and what of the training differs from the other tasks."""

    name: str = Field(description="What rows and tables call it.")
    task: Task = Field(default="text-classification", description="What is learned.")
    data: DataConfig = Field(description="As in a run; `eval` is the reported split.")
    training: dict[str, Any] = Field(
        default_factory=dict, description="Training settings of this task alone, over the common ones."
    )


class Selection(Section):
    """How a method's learning rate is chosen: on a part of train, never on the reported split."""

    fraction: float = Field(default=0.1, gt=0, lt=1, description="Share of the training examples that is held out.")
    seed: int = Field(default=1000, ge=0, lt=2**32, description="Of the held-out part and of the selection runs.")
    by: Literal["last", "best"] = Field(default="last", description="Which epoch's metric a rate is judged by.")


class Study(Section):
    """A comparison of methods, completely."""

    name: str = Field(description="Of the study; its folder is studies/<name>.")
    mode: Scope = Field(default="whole", description="The scope of every run; see there.")
    models: list[str] = Field(min_length=1, description="Hub ids or local folders.")
    tasks: list[TaskEntry] = Field(min_length=1, description="What is learned.")
    methods: list[MethodEntry] = Field(min_length=1, description="What is compared.")
    ranks: list[Annotated[int, Field(ge=1)]] = Field(
        default=[8], min_length=1, description="r of the adapters; full fine-tuning has none."
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1, description="Of the reported runs.")
    learning_rates: list[float] | dict[str, list[float]] = Field(
        description="One list for all methods, or a list per label, all of one length."
    )
    selection: Selection = Field(default_factory=Selection, description=str(Selection.__doc__))
    lora: LoraSettings = Field(default_factory=LoraSettings, description="As in a run, without r.")
    head: HeadSettings = Field(default_factory=HeadSettings, description="As in a run; for mode head.")
    mixture: MixtureSettings = Field(default_factory=MixtureSettings, description="As in a run; for mode mixture.")
    continual: ContinualSettings = Field(
        default_factory=ContinualSettings, description="As in a run; for mode continual."
    )
    federated: FederatedSettings = Field(
        default_factory=FederatedSettings, description="As in a run; for mode federated."
    )
    derivative_free: DerivativeFreeSettings = Field(
        default_factory=DerivativeFreeSettings, description="As in a run; for mode derivative-free."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="As in a run, without lr and seed.")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="As in a run; of the methods that drop at random."
    )
    slurm: SlurmSettings = Field(default_factory=SlurmSettings, description=str(SlurmSettings.__doc__))
    keep_weights: Literal["adapters", "all", "none"] = Field(
        default="adapters", description="Weights that stay in the folders of finished cells."
    )
    trust_remote_code: bool = Field(default=False, description="As in a run.")
    output: str | None = Field(default=None, description="Folder of the study; default: studies/<name>.")

    @field_validator("methods", "tasks", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return (
            [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        )

    @model_validator(mode="after")
    def _check(self) -> Study:
        for section, name, remedy in (
            (self.lora, "r", "ranks"),
            (self.training, "lr", "learning_rates"),
            (self.training, "seed", "seeds"),
        ):
            if name in section.model_fields_set:
                raise ValueError(f'"{name}" differs between the cells of a study; give {remedy}=[...] instead')
        return self

    @property
    def folder(self) -> Path:
        """Where everything of the study lies."""
        return Path(self.output or f"studies/{self.name}").expanduser()
