"""Which architectures vLLM serves with LoRA, and the linear layers some of them have.

Read off the column LoRA of docs/models/supported_models.md and of docs/models/pooling_models/classify.md in
vllm-project/vllm, at commits 0046f770d322e202c2000e325a0c8cc1fcb2fc76 and 05c9f34efe8d8571520a1277bb84f41bbc4a80d6.
Text models only.
"""

from __future__ import annotations

WITH_LORA = frozenset(
    {
        "BailingMoeForCausalLM",
        "ChatGLMModel",
        "Cohere2ForCausalLM",
        "CohereForCausalLM",
        "DeepseekForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "Ernie4_5ForCausalLM",
        "Exaone4ForCausalLM",
        "ExaoneForCausalLM",
        "FalconH1ForCausalLM",
        "GPTBigCodeForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma4ForCausalLM",
        "GemmaForCausalLM",
        "Glm4ForCausalLM",
        "Glm4MoeForCausalLM",
        "GlmForCausalLM",
        "GptOssForCausalLM",
        "GraniteForCausalLM",
        "GraniteMoeForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "InternLM2ForCausalLM",
        "InternLM3ForCausalLM",
        "JambaForCausalLM",
        "Lfm2ForCausalLM",
        "LlamaForCausalLM",
        "MiMoForCausalLM",
        "MiniCPM3ForCausalLM",
        "MiniCPMForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "NemotronForCausalLM",
        "NemotronHForCausalLM",
        "OPTForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "OlmoForCausalLM",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "PhiMoEForCausalLM",
        "Plamo3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "SeedOssForCausalLM",
        "SmolLM3ForCausalLM",
        "Starcoder2ForCausalLM",
        "VaultGemmaForCausalLM",
    }
)
WITHOUT_LORA = frozenset(
    {
        "BloomForCausalLM",
        "DbrxForCausalLM",
        "ErnieForSequenceClassification",
        "FalconForCausalLM",
        "FalconMambaForCausalLM",
        "GPT2ForSequenceClassification",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "GPTNeoXForCausalLM",
        "Gemma3nForCausalLM",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "MPTForCausalLM",
        "OlmoeForCausalLM",
        "OrionForCausalLM",
        "Qwen2ForSequenceClassification",
        "StableLmForCausalLM",
    }
)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LIKE_LLAMA = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
LLAMA_LAYERS = frozenset({*_PROJECTIONS, "embed_tokens", "lm_head"})
"""The linear layers of these, and the embeddings their classes name in `embedding_modules`."""
