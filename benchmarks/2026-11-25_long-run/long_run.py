"""Train a tiny ViT by RM-LoRA for many steps and note the resident memory of the process.

`python long_run.py [STEPS]` writes rows.jsonl beside itself and prints the slope; Linux only.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

import rmlora

HERE = Path(__file__).parent
EVERY, SAVE_EVERY, SIZE = 100, 1000, 4
PAGE = os.sysconf("SC_PAGE_SIZE")


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    settings = LoraConfig(r=8, target_modules="all-linear", modules_to_save=["classifier"])
    return get_peft_model(ViTForImageClassification(config), settings)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def run(steps: int) -> list[dict[str, float]]:
    model = make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(weight=1e-3, directions=4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    rows, begun = [], time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        pixels, labels = torch.randn(SIZE, 1, 8, 8, generator=draw), torch.randint(3, (SIZE,), generator=draw)
        loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % SAVE_EVERY == 0:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                torch.save(optimizer.state_dict(), Path(folder) / "optimizer.pt")
        if step % EVERY == 0:
            seconds = round(time.monotonic() - begun, 1)
            rows.append({"step": step, "resident": resident(), "penalty": handle.metrics()["penalty"], "s": seconds})
    assert handle.step == steps
    return rows


def slope(rows: list[dict[str, float]]) -> float:
    """Growth of resident memory in MB (10^6 bytes) per 1,000 steps, by least squares over the second half."""
    late = rows[len(rows) // 2 :]
    per_step = np.polyfit([row["step"] for row in late], [row["resident"] for row in late], 1)[0]
    return float(per_step * 1000 / 1e6)


if __name__ == "__main__":
    found = run(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
    (HERE / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    first, last = found[len(found) // 2]["resident"] / 1e6, found[-1]["resident"] / 1e6
    print(
        f"{found[-1]['step']} steps: {first:.1f} MB half way, {last:.1f} MB at the end, {slope(found):+.4f} MB / 1,000"
    )
