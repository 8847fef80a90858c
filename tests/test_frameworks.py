"""Law 6: the HF Trainer, Accelerate, Lightning and a bare loop end at the same weights, to 1e-10 in float64."""

import warnings

import lightning
import pytest
import torch
from accelerate import Accelerator
from peft import AdaLoraConfig, VeraConfig
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

import rmlora
from rmlora.methods import METHODS
from tests import tiny, toys
from tests.test_laws import build, methods_under

NAME, STEPS, SIZE = "bert", 5, 4
METHOD = rmlora.rm_lora(weight=1e-2, directions=2)
# One implementation of AdamW for all: `foreach` and `fused` round differently.
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "foreach": False}


def make_model(adapts="LORA"):
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = None
    if adapts == "ADALORA":
        settings = tiny.lora_settings(NAME)
        budget = {"total_step": STEPS + 1, "tinit": 1, "tfinal": 2, "target_r": 2}
        config = AdaLoraConfig(init_r=settings.pop("r"), **(settings | toys.TRIPLETS | budget))
    elif adapts == "VERA":
        settings = tiny.lora_settings(NAME)
        dropout = settings.pop("lora_dropout", 0.0)
        kept = {
            key: settings[key] for key in ("r", "target_modules", "modules_to_save", "task_type") if key in settings
        }
        config = VeraConfig(vera_dropout=dropout, **kept)
    return tiny.adapted(NAME, config, dtype=torch.float64, base=no_dropout)


def make_optimizer(model):
    return torch.optim.AdamW(tiny.trained(model), **ADAMW)


def rows():
    """One row per example, in the order every framework has to visit them; all of one length."""
    batch = tiny.inputs(NAME, size=STEPS * SIZE, seed=7)
    return [{key: value[i] for key, value in batch.items()} for i in range(STEPS * SIZE)]


def train_bare(model, folder):
    optimizer = make_optimizer(model)
    model.train()
    for batch in DataLoader(rows(), batch_size=SIZE):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_accelerate(model, folder):
    accelerator = Accelerator(cpu=True)
    wrapped, optimizer, batches = accelerator.prepare(model, make_optimizer(model), DataLoader(rows(), batch_size=SIZE))
    wrapped.train()
    for batch in batches:
        accelerator.backward(wrapped(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()


class InOrder(Trainer):
    """The HF Trainer, reading its data in order; nothing else is changed."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def train_hf(model, folder):
    settings = TrainingArguments(
        str(folder),
        per_device_train_batch_size=SIZE,
        num_train_epochs=1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        gradient_accumulation_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    InOrder(model, settings, train_dataset=rows(), optimizers=(make_optimizer(model), None)).train()


class Lit(lightning.LightningModule):
    """Lightning's automatic optimization, whose `step` is given a closure."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.closures = 0

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return make_optimizer(self.model)

    def optimizer_step(self, epoch, index, optimizer, optimizer_closure=None):
        self.closures += optimizer_closure is not None
        super().optimizer_step(epoch, index, optimizer, optimizer_closure)

    def on_train_start(self):
        self.model.train()


def train_lightning(model, folder):
    module = Lit(model)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, DataLoader(rows(), batch_size=SIZE))
    assert module.closures == STEPS


FRAMEWORKS = {"hf": train_hf, "accelerate": train_accelerate, "lightning": train_lightning}


def trained_by(train, folder, method=METHOD, adapts="LORA"):
    model = make_model(adapts)
    handle = None if method is None else rmlora.attach(model, method, provides=method.needs)
    train(model, folder)
    assert handle is None or handle.step == STEPS
    return tiny.learnt(model)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return trained_by(train_bare, tmp_path_factory.mktemp("bare"))


def test_the_method_changes_the_weights_at_all(bare, tmp_path):
    assert tiny.distance(bare, trained_by(train_bare, tmp_path, None)) > 1e-3
    assert tiny.distance(bare, trained_by(train_bare, tmp_path, rmlora.gm_lora(2))) > 1e-4
    assert tiny.distance(bare, trained_by(train_bare, tmp_path, rmlora.r_lora(1e-2))) > 1e-4


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_ends_at_the_weights_of_the_bare_loop(framework, bare, tmp_path):
    assert tiny.distance(bare, trained_by(FRAMEWORKS[framework], tmp_path)) <= 1e-10


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_ends_at_the_same_plain_lora(framework, tmp_path):
    """The frameworks agree without a method: a difference above is the method's, not theirs."""
    expected = trained_by(train_bare, tmp_path, None)
    assert tiny.distance(expected, trained_by(FRAMEWORKS[framework], tmp_path, None)) <= 1e-10


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("policy", ["update", "state"])
def test_what_masked_directions_do_is_the_same_under_every_framework(framework, policy, tmp_path):
    method = rmlora.rm_lora(weight=1e-2, directions=2, policy=policy)
    expected = trained_by(train_bare, tmp_path, method)
    assert tiny.distance(expected, trained_by(FRAMEWORKS[framework], tmp_path, method)) <= 1e-10


# One method of each kind in the ordinary suite: a mask, a step of its own, batches and adapters of its own, blocks.
ALWAYS = ("rm-lora", "lora-rite", "lora-dropout", "adalora", "vera", "rac-lora")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in methods_under("frameworks")],
)
def test_law_frameworks(name, tmp_path):
    method, adapts = build(name), METHODS[name].adapts
    expected = trained_by(train_bare, tmp_path, method, adapts)
    for framework, train in FRAMEWORKS.items():
        assert tiny.distance(expected, trained_by(train, tmp_path, method, adapts)) <= 1e-10, framework
