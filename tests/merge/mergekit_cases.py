"""Merges that MergeKit and `apr` both make of the same tiny models; no imports of either.

Each case is MergeKit's own YAML as plain data. ours: settings where `apr` must be told to follow
MergeKit, because it departs from the paper (docs/merging.md).
"""

from __future__ import annotations

from typing import Any

LAYERS = 3
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
MODELS = ("a", "b", "c")


def shapes() -> dict[str, tuple[int, ...]]:
    h, i, kv, v = 8, 12, 4, 24
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        found |= {
            p + "self_attn.q_proj.weight": (h, h),
            p + "self_attn.k_proj.weight": (kv, h),
            p + "self_attn.v_proj.weight": (kv, h),
            p + "self_attn.o_proj.weight": (h, h),
            p + "mlp.gate_proj.weight": (i, h),
            p + "mlp.up_proj.weight": (i, h),
            p + "mlp.down_proj.weight": (h, i),
            p + "input_layernorm.weight": (h,),
            p + "post_attention_layernorm.weight": (h,),
        }
    return {**found, "model.norm.weight": (h,), "lm_head.weight": (v, h)}


def _models(names: str = "abc", **parameters: Any) -> list[dict[str, Any]]:
    entries = []
    for i, name in enumerate(names):
        own = {
            key: value[i] if isinstance(value, tuple) else value
            for key, value in parameters.items()
        }
        entries.append({"model": name, "parameters": own})
    return entries


def _deltas(method: str, names: str = "abc", **parameters: Any) -> dict[str, Any]:
    per_model = {"weight": (0.7, 0.5, -0.2), "density": (0.5, 0.3, 0.7)}
    own = {k: parameters.pop(k, v) for k, v in per_model.items()}
    if method == "task_arithmetic":
        del own["density"]  # MergeKit takes it, but does nothing with it
    for key in ("gamma", "epsilon"):
        if key in parameters:
            own[key] = parameters.pop(key)
    return {
        "merge_method": method,
        "base_model": "base",
        "models": _models(names, **own),
        "parameters": parameters,
        "dtype": "float32",
    }


L1 = {"rescale_norm": "l1"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        {"merge_method": "linear", "models": _models(weight=(0.7, 0.2, 0.4)), "dtype": "float32"},
        {},
    ),
    "linear-sum": (
        {
            "merge_method": "linear",
            "models": _models(weight=(0.7, 0.2, 0.4)),
            "parameters": {"normalize": False},
            "dtype": "float32",
        },
        {},
    ),
    "linear-gradient": (
        {
            "merge_method": "linear",
            "models": [
                {"model": "a", "parameters": {"weight": [0.1, 0.9]}},
                {
                    "model": "b",
                    "parameters": {
                        "weight": [
                            {"filter": "mlp", "value": [0.3, 0.6, 1.0]},
                            {"filter": "self_attn", "value": 0.2},
                            {"value": 0.5},
                        ]
                    },
                },
            ],
            "dtype": "float32",
        },
        {},
    ),
    "slerp": (
        {
            "merge_method": "slerp",
            "base_model": "base",
            "slices": [
                {
                    "sources": [
                        {"model": "base", "layer_range": [0, LAYERS]},
                        {"model": "b", "layer_range": [0, LAYERS]},
                    ]
                }
            ],
            "parameters": {
                "t": [
                    {"filter": "self_attn", "value": [0, 0.5, 0.3]},
                    {"filter": "mlp", "value": [1, 0.5, 0.7]},
                    {"value": 0.4},
                ]
            },
            "dtype": "float32",
        },
        {},
    ),
    "slerp-far": (
        {
            "merge_method": "slerp",
            "base_model": "far",
            "models": _models("b"),
            "parameters": {"t": 0.35},
            "dtype": "float32",
        },
        {},
    ),
    "nuslerp": (
        {"merge_method": "nuslerp", "models": _models("ab", weight=(0.7, 0.4)), "dtype": "float32"},
        {},
    ),
    "nuslerp-base": (
        {
            "merge_method": "nuslerp",
            "base_model": "base",
            "models": _models("ab", weight=(0.7, 0.4)),
            "dtype": "float32",
        },
        {},
    ),
    "multislerp": (
        {
            "merge_method": "multislerp",
            "models": _models(weight=(0.7, 0.2, 0.4)),
            "dtype": "float32",
        },
        {},
    ),
    "multislerp-base": (
        {
            "merge_method": "multislerp",
            "base_model": "base",
            "models": _models(weight=(0.7, 0.2, 0.4)),
            "dtype": "float32",
        },
        {},
    ),
    "karcher": (
        {
            "merge_method": "karcher",
            "models": [*_models("ab"), {"model": "far"}],
            "dtype": "float32",
        },
        {},
    ),
    "task_arithmetic": (_deltas("task_arithmetic", **{"lambda": 0.8}), {}),
    "task_arithmetic-mean": (_deltas("task_arithmetic", normalize=True), {}),
    "ties": (_deltas("ties"), {}),
    "ties-lambda": (_deltas("ties", **{"lambda": 1.3}, rescale=True), {}),
    "ties-sum": (_deltas("ties", normalize=False), {}),
    "dare_linear": (_deltas("dare_linear"), L1),
    "dare_linear-plain": (_deltas("dare_linear", rescale=False), {}),
    "dare_ties": (_deltas("dare_ties"), L1),
    "breadcrumbs": (_deltas("breadcrumbs", gamma=0.05), {}),
    "breadcrumbs_ties": (_deltas("breadcrumbs_ties", gamma=(0.05, 0.03, 0.02)), {}),
    "della": (_deltas("della", epsilon=0.1), L1),
    "della_linear": (_deltas("della_linear", epsilon=0.1), L1),
    "model_stock": (
        {
            "merge_method": "model_stock",
            "base_model": "base",
            "models": _models(),
            "dtype": "float32",
        },
        {},
    ),
    "model_stock-rows": (
        {
            "merge_method": "model_stock",
            "base_model": "base",
            "models": _models(),
            "parameters": {"filter_wise": True},
            "dtype": "float32",
        },
        {},
    ),
    "sce": (
        {
            "merge_method": "sce",
            "base_model": "base",
            "models": _models(),
            "parameters": {"select_topk": 0.4},
            "dtype": "float32",
        },
        {},
    ),
    "arcee_fusion": (
        {
            "merge_method": "arcee_fusion",
            "base_model": "base",
            "models": _models("b"),
            "dtype": "float32",
        },
        {},
    ),
    "nearswap": (
        {
            "merge_method": "nearswap",
            "base_model": "base",
            "models": _models("b"),
            "parameters": {"t": 0.004},
            "dtype": "float32",
        },
        {},
    ),
    "passthrough": (
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 2]}]},
                {
                    "sources": [
                        {
                            "model": "b",
                            "layer_range": [1, 3],
                            "parameters": {
                                "scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]
                            },
                        }
                    ]
                },
            ],
            "dtype": "float32",
        },
        {},
    ),
    "slices": (
        {
            "merge_method": "ties",
            "base_model": "base",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 2], "parameters": {"weight": 0.6}},
                        {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 0.3}},
                        {"model": "base", "layer_range": [0, 2]},
                    ],
                    "parameters": {"density": 0.6},
                },
                {
                    "sources": [
                        {"model": "a", "layer_range": [2, 3], "parameters": {"weight": 0.6}},
                        {"model": "base", "layer_range": [2, 3]},
                    ]
                },
            ],
            "parameters": {"density": 0.4},
            "dtype": "float32",
        },
        {},
    ),
    "nuslerp-rows": (
        {
            "merge_method": "nuslerp",
            "models": _models("ab", weight=(0.7, 0.4)),
            "parameters": {"nuslerp_flatten": False},
            "dtype": "float32",
        },
        {},
    ),
    "nuslerp-columns": (
        {
            "merge_method": "nuslerp",
            "base_model": "base",
            "models": _models("ab", weight=(0.7, 0.4)),
            "parameters": {"nuslerp_flatten": "false", "nuslerp_row_wise": True},
            "dtype": "float32",
        },
        {},
    ),
    # What YAML makes of 1e-1, and of quoted words.
    "text": (_deltas("ties", **{"lambda": "13e-1"}, normalize="false", rescale="yes"), {}),
    "text-gradient": (
        {
            "merge_method": "linear",
            "models": _models("ab", weight=(["1e-1", "9e-1"], {"filter": "mlp", "value": "3e-1"})),
            "parameters": {"weight": 1, "normalize": ["true", "false"]},
            "dtype": "torch.float32",
        },
        {},
    ),
    "density-0": (_deltas("ties", density=(0, 0.3, "0.0")), {}),
    "density-0-random": (_deltas("dare_ties", density=0), {}),
    "without-effect": (
        {
            "merge_method": "sce",
            "base_model": "base",
            "models": _models(weight=0.3, select_topk=0.1),
            "parameters": {"select_topk": 0.4, "normalize": True, "tukey_fence": 1.5},
            "random_seed": 0,
            "dtype": "float32",
        },
        {},
    ),
    "base-joins": (
        {
            "merge_method": "linear",
            "base_model": "base",
            "models": [{"model": {"model": {"path": "a"}}}, {"model": "b"}],
            "parameters": {"weight": 0.5},
            "dtype": "float32",
        },
        {},
    ),
    "module": (
        {
            "merge_method": "ties",
            "base_model": "base",
            "modules": {
                "default": {
                    "models": _models("ab", weight=(1, 0.5)),
                    "parameters": {"density": [{"filter": "mlp", "value": 0.4}]},
                }
            },
            "parameters": {"density": 0.7},
            "dtype": "float32",
        },
        {},
    ),
    "slices-without-layers": (
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "b", "layer_range": [1, 1]}]},
                {"sources": [{"model": "a", "layer_range": [0, 2]}]},
                {"sources": [{"model": "c", "layer_range": [3, 3]}], "residual_weight": 0.5},
            ],
            "dtype": "float32",
        },
        {},
    ),
}
