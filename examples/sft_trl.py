"""RM-LoRA under TRL's SFTTrainer: `rmlora.attach` is the one line that plain LoRA does not have.

    python examples/sft_trl.py --data train.jsonl --tokenizer tokenizer.json --output adapter

The data are JSON lines with "prompt" and "completion". The model is a small random Llama, so that the script needs no
download; put `AutoModelForCausalLM.from_pretrained(...)` in its place.
"""

from argparse import ArgumentParser

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import rmlora

parser = ArgumentParser(description="Fine-tune a small random Llama by RM-LoRA with TRL's SFTTrainer.")
parser.add_argument("--data", required=True, help="JSON lines: prompt, completion")
parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
parser.add_argument("--output", default="runs/sft_trl", help="where the adapter goes")
parser.add_argument("--steps", type=int, default=50, help="optimizer steps")
options = parser.parse_args()

END = "<|endoftext|>"
tokenizer = PreTrainedTokenizerFast(tokenizer_file=options.tokenizer, eos_token=END, pad_token=END)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
base.save_pretrained(f"{options.output}/base")

model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
rmlora.attach(model, rmlora.rm_lora(weight=1e-3, directions=4))

settings = SFTConfig(
    options.output,
    max_steps=options.steps,
    max_length=128,
    learning_rate=1e-3,
    save_strategy="no",
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
)
data = load_dataset("json", data_files=options.data, split="train")
data = data.map(lambda row: {"completion": " " + row["completion"]})  # so that no token spans prompt and completion
trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer)
trainer.train()
model.save_pretrained(f"{options.output}/adapter")
