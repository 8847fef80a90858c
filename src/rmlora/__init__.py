"""RM-LoRA for any PEFT model and any trainer."""
