"""How a trained classification layer is used without this package: the code in its model card."""

from __future__ import annotations

from rmlora.heads.plan import HeadRun
from rmlora.modeling import loader_name

WHAT = "classification layer on the features of a frozen model"

_LAYER = """layer = load_file("<this folder>/head.safetensors")
outputs = features @ layer["weight"].T + layer["bias"]"""

_ADAPTER = """
`head.safetensors` has the adapter merged and any standardisation folded in. The adapter by itself is a PEFT LoRA of a
module whose linear layer is called `classifier`, with the weight W0, and reads (features - shift) / spread;
`frozen.safetensors` holds W0 (`weight`), `shift` and `spread`.
"""


def describe_usage(run: HeadRun) -> str:
    """Return Markdown with the code that turns inputs into outputs, by transformers and torch alone."""
    is_image = run.config.task == "image-classification"
    reads_mean = run.config.head.features == "mean" or (run.config.head.features == "auto" and not is_image)
    code = _from_mean(run) if reads_mean else _from_classifier(run, is_image)
    return f"```python\n{code}\n```\n" + ("" if run.method.trains_base else _ADAPTER)


def _from_mean(run: HeadRun) -> str:
    model, length = run.config.model, run.config.data.max_length
    texts = "[text], [text_pair]" if len(run.data.train.inputs) > 1 else "[text]"
    return f"""from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

backbone = AutoModel.from_pretrained("{model}").eval()
tokenizer = AutoTokenizer.from_pretrained("{model}")
inputs = tokenizer({texts}, padding=True, truncation=True, max_length={length}, return_tensors="pt")
mask = inputs["attention_mask"].unsqueeze(-1)
features = (backbone(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
{_LAYER}"""


def _from_classifier(run: HeadRun, is_image: bool) -> str:
    model, auto = run.config.model, loader_name(run.config.task)
    processor = "AutoImageProcessor" if is_image else "AutoTokenizer"
    return f"""import torch
from safetensors.torch import load_file
from transformers import {auto}, {processor}

model = {auto}.from_pretrained("{model}", num_labels={run.outputs}).eval()
processor = {processor}.from_pretrained("{model}")
layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == {run.outputs}]
layers[-1].load_state_dict(load_file("<this folder>/head.safetensors"))"""
