"""Adapters and documents that are compared with PEFT (read by its environment too: no imports)."""

from __future__ import annotations

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name -> (model of tests/model/zoo.py, LoraConfig's settings)
CASES = {
    "plain": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}),
    "rslora-all": ("qwen2", {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ALL}),
    "dora": ("qwen2", {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ALL}),
    "output-layer": (
        "llama",
        {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "lm_head"]},
    ),
    "embeddings": (
        "llama-tied-mha",
        {"r": 3, "lora_alpha": 4, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "embeddings-scaled": (
        "gemma3-softcap-untied",
        {"r": 3, "lora_alpha": 4, "target_modules": ["embed_tokens", "v_proj"]},
    ),
    "one-layer": (
        "llama",
        {"r": 2, "lora_alpha": 4, "target_modules": ["model.layers.1.self_attn.q_proj"]},
    ),
}
DOCUMENTS = [
    [1, *((7 * i * i + 3 * i + 11) % 128 + 3 for i in range(18))],
    [1, *((5 * i * i + i + 29) % 128 + 3 for i in range(10))],
]
# Loss on the later part of each document only.
LABELS = [[-100] * 7 + DOCUMENTS[0][7:], [-100] * 3 + DOCUMENTS[1][3:]]
