"""Proving on the CPU that an adapter folder works elsewhere: in PEFT, vLLM, llama.cpp, ONNX and torch.export."""
