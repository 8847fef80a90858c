"""The embedded default: real digits, a small ViT, every method side by side, offline, in under three minutes."""

from rmlora.demo.runs import run_demo

__all__ = ["run_demo"]
