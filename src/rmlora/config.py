"""What a run is told: one strict model of every setting, its defaults, ranges and meanings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from rmlora.sections import (
    ContinualSettings,
    DerivativeFreeSettings,
    FederatedSettings,
    MixtureSettings,
    Section,
)

Task = Literal["text-classification", "text-regression", "image-classification", "question-answering", "causal-lm"]
Scope = Literal["whole", "head", "mixture", "continual", "federated", "derivative-free"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "exact_match", "log_likelihood"]


class DataConfig(Section):
    """Where the examples are, and which columns hold what."""

    train: str | None = Field(
        default=None, description="Training file (.jsonl, .json, .csv, .tsv, .parquet, .npz) or image folder."
    )
    eval: str | None = Field(
        default=None, description="Held-out file or folder; an .npz may hold both parts (x_train, x_test) itself."
    )
    dataset: str | None = Field(
        default=None, description='Hub data set instead of files: "glue/rte", "owner/name", "owner/name/config".'
    )
    glue: Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"] | None = Field(
        default=None,
        description="The files are this GLUE task: its columns, classes, official metric; known from glue/... itself.",
    )
    eval_mismatched: str | None = Field(
        default=None, description="MNLI's second held-out file; from the Hub it is evaluated without being asked for."
    )
    train_split: str = Field(default="train", description="Split of the Hub data set to train on.")
    eval_split: str | None = Field(
        default=None, description="Split to evaluate on; default: the first of validation, validation_matched, test."
    )
    text: str | None = Field(
        default=None,
        description="Column of the (first) text; default: sentence1, sentence, text, premise, question...; "
        "of causal-lm: prompt, instruction, input.",
    )
    text_pair: str | None = Field(
        default=None, description="Column of the second text; default: the partner of `text`, if there is one."
    )
    image: str | None = Field(default=None, description="Column (or .npz array) of the images; default: image, img, x.")
    label: str | None = Field(
        default=None,
        description="Column (or .npz array) of the labels; default: label, labels, y; of causal-lm: completion, "
        "response, output.",
    )
    num_labels: int | None = Field(default=None, ge=2, description="Number of classes; default: counted in `train`.")
    label_names: list[str] | None = Field(
        default=None, description="Names of classes 0, 1, ...; default: from the data."
    )
    separator: str = Field(default="", description="With task=causal-lm: put between prompt and completion.")
    max_length: int = Field(
        default=128, ge=4, description="Tokens kept of each example, both texts together; question-answering: 384."
    )
    stride: int = Field(
        default=128, ge=0, description="question-answering: tokens that neighbouring windows of a long context share."
    )
    train_examples: int | None = Field(
        default=None, ge=1, description="Train on a seeded sample of this many examples; default: all."
    )
    train_per_class: int | None = Field(
        default=None, ge=1, description="Train on a seeded sample of this many examples of each class; default: all."
    )
    eval_examples: int | None = Field(
        default=None, ge=1, description="Evaluate on a seeded sample of this many; default: all."
    )
    sample_seed: int | None = Field(default=None, ge=0, description="Of the samples; default: training.seed.")
    holdout: float | None = Field(
        default=None, gt=0, lt=1, description="Instead of data.eval: hold out this share of `train`, by class."
    )
    holdout_seed: int = Field(default=0, ge=0, description="Which examples `holdout` takes.")


class LoraSettings(Section):
    """The adapter: PEFT's own names."""

    r: int = Field(default=8, ge=1, description="Directions of each adapted module.")
    lora_alpha: int | float | None = Field(
        default=None, gt=0, description="Numerator of the scale alpha / r; default: 2 r."
    )
    scale: float | None = Field(
        default=None, gt=0, description="The scale s of s B A itself, the same at every r; instead of lora_alpha."
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Probability with which an input of A is dropped.")
    target_modules: str | list[str] = Field(
        default="auto",
        description='"auto" = every linear layer of the encoder\'s blocks; or names, or a regular expression.',
    )
    use_rslora: bool = Field(default=False, description="Scale alpha / sqrt(r) instead of alpha / r.")
    use_dora: bool = Field(default=False, description="Train magnitudes beside directions (DoRA).")
    ranks: Literal["equal", "linear"] = Field(
        default="equal", description='"linear" = ranks grow with depth, with mean r and the same scale (PRILoRA).'
    )
    rank_ratio: float = Field(
        default=3.0, gt=0, description="With ranks=linear: rank of the last block over that of the first."
    )
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "pissa", "olora"] = Field(
        default=True, description="How A and B start; true: A uniform, B zero."
    )


class HeadSettings(Section):
    """With scope=head: what the classification layer reads and how it starts."""

    features: Literal["auto", "classifier", "mean"] = Field(
        default="auto",
        description="What the layer reads: the classifier's own input, or the mean over token states; "
        "auto = classifier for images, mean for texts.",
    )
    standardise: bool = Field(
        default=False, description="Shift and scale each feature to mean 0, deviation 1 on the training part."
    )
    frozen: Literal["zero", "random"] = Field(
        default="zero", description="The layer's weight W0, which no adapter changes: all 0, or drawn with the seed."
    )


class AnswerSettings(Section):
    """With task=question-answering: which stretches of the context may be an answer."""

    n_best: int = Field(default=20, ge=1, description="Likeliest first and last tokens that are tried together.")
    max_answer_length: int = Field(default=30, ge=1, description="Tokens an answer may have.")


class TrainingConfig(Section):
    """The loop: HF Trainer's settings under short names."""

    epochs: int = Field(default=3, ge=1, description="Passes over the training data.")
    lr: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate; default: 1e-3 for adapters, VeRA 1e-2, full fine-tuning 2e-5.",
    )
    batch_size: int = Field(default=32, ge=1, description="Examples per device and forward pass.")
    eval_batch_size: int = Field(default=64, ge=1, description="The same when evaluating.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forward passes per optimizer step.")
    optimizer: str = Field(default="adamw_torch_fused", description="One of HF Trainer's optimizers.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled decay; 0 = none.")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Clip the gradient to this norm; 0 = do not clip.")
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = Field(
        default="linear", description="How the learning rate falls after the warm-up."
    )
    warmup_steps: float = Field(default=0, ge=0, description="Steps of linear warm-up; below 1: share of all steps.")
    group_by_length: bool = Field(default=False, description="Batch texts of similar length: less padding, faster.")
    fast: bool = Field(default=True, description="Let linear layers take the fast path; false = PEFT's own forward.")
    instance_chunk: int | None = Field(
        default=None,
        ge=1,
        description="Of a method with instances: how many at a time; default: all that can be stacked.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Autocast dtype; fp16 needs a GPU.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, more time.")
    num_workers: int = Field(default=0, ge=0, description="Processes that prepare batches; 0 = the main one.")
    evaluate_every: int = Field(default=1, ge=1, description="Evaluate after every so many epochs, and after the last.")
    train_eval_examples: int = Field(
        default=1000, ge=0, description="Training examples evaluated with the held-out part, for the gap; 0 = none."
    )
    metric: Metric | None = Field(
        default=None,
        description="Decides the best epoch; default: GLUE's own; else accuracy; regression: pearson; "
        "questions: f1; causal-lm: log_likelihood.",
    )
    save: Literal["last", "best"] = Field(default="last", description="Which epoch's weights the run leaves.")
    save_every_epoch: bool = Field(default=True, description="Keep a checkpoint for --resume after each epoch.")
    keep_checkpoints: int = Field(default=1, ge=1, description="Checkpoints kept; older ones are deleted.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the head, the order of the data, dropout and masks.")
    report_to: list[str] = Field(default=[], description='Trackers of HF Trainer, e.g. ["trackio"]; default: none.')


class GenerationSettings(Section):
    """With task=causal-lm: what the trained model completes at the end."""

    examples: int = Field(
        default=4, ge=0, description="Held-out prompts completed at the end, into generated.jsonl; 0 = none."
    )
    max_new_tokens: int = Field(default=64, ge=1, description="Tokens after which a text ends if it has not ended.")
    metrics: list[Literal["rouge_l", "bleu"]] = Field(
        default=[], description='Compare those texts with the completions; needs "rmlora[generation]".'
    )


class EvaluationSettings(Section):
    """What is evaluated at the end, beside the model itself."""

    ensemble: int = Field(
        default=0, ge=0, description="Instances averaged at the end, of a method that drops at random; 0 = none."
    )
    average: Literal["logits", "probabilities"] = Field(
        default="logits", description="What of the instances is averaged: outputs, or the distributions they stand for."
    )
    chunk: int | None = Field(default=None, ge=1, description="Instances computed at a time; default: all.")


class RunConfig(Section):
    """One training run of rmlora, completely."""

    model: str = Field(description="Hub id or local folder of a transformers model (safetensors).")
    task: Task = Field(default="text-classification", description="What is learned.")
    data: DataConfig = Field(default_factory=DataConfig, description=str(DataConfig.__doc__))
    scope: Scope = Field(
        default="whole",
        description="What is adapted: the whole model; only its classification layer, on cached features; or the "
        "whole model by a system of more than one adapter or party: see the groups of that name.",
    )
    head: HeadSettings = Field(default_factory=HeadSettings, description=str(HeadSettings.__doc__))
    mixture: MixtureSettings = Field(default_factory=MixtureSettings, description=str(MixtureSettings.__doc__))
    continual: ContinualSettings = Field(default_factory=ContinualSettings, description=str(ContinualSettings.__doc__))
    federated: FederatedSettings = Field(default_factory=FederatedSettings, description=str(FederatedSettings.__doc__))
    derivative_free: DerivativeFreeSettings = Field(
        default_factory=DerivativeFreeSettings, description=str(DerivativeFreeSettings.__doc__)
    )
    answers: AnswerSettings = Field(default_factory=AnswerSettings, description=str(AnswerSettings.__doc__))
    method: str = Field(default="rm-lora", description="A method listed by `rmlora methods`.")
    method_args: dict[str, Any] = Field(
        default_factory=dict, description="The method's own settings, e.g. {weight: 1.0e-4, directions: 0.5}."
    )
    init_adapter: str | None = Field(default=None, description="Folder of a LoRA adapter to go on training.")
    lora: LoraSettings = Field(default_factory=LoraSettings, description=str(LoraSettings.__doc__))
    training: TrainingConfig = Field(default_factory=TrainingConfig, description=str(TrainingConfig.__doc__))
    generation: GenerationSettings = Field(
        default_factory=GenerationSettings, description=str(GenerationSettings.__doc__)
    )
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description=str(EvaluationSettings.__doc__)
    )
    output: str | None = Field(default=None, description="Folder of the results; default: runs/<what was run>.")
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with a Hub model or data set. Only if you trust it."
    )


def setting_names(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """List every setting by its dotted name.

    Example:
        >>> [name for name in setting_names() if name.endswith("lr")]
        ['training.lr']
    """
    names: list[str] = []
    for name, field in section.model_fields.items():
        names.append(f"{prefix}{name}")
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
    return names


def section_names() -> list[str]:
    """List the settings that are groups of others.

    Example:
        >>> section_names()[:4]
        ['answers', 'continual', 'data', 'derivative_free']
    """
    return sorted({name.split(".")[0] for name in setting_names() if "." in name})


def read_setting(config: RunConfig, name: str) -> Any:
    """Return the value of a setting by its dotted name.

    Example:
        >>> read_setting(RunConfig(model="m"), "training.epochs")
        3
    """
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
