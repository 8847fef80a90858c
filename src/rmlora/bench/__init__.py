"""`rmlora bench`: training steps of a frozen model, PEFT's LoRA and RM-LoRA, side by side in one process."""
