"""What transformers knows of an exported model of this project's own recipe."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MiniGPTConfig(PretrainedConfig):
    """`recipe` holds the fields of `ModelConfig`; the others are what generic tools ask for."""

    model_type = "mini_gpt"

    def __init__(self, recipe: dict[str, Any] | None = None, **values: Any) -> None:
        self.recipe = recipe or {}
        for theirs, ours in (
            ("vocab_size", "vocab_size"),
            ("max_position_embeddings", "context_length"),
            ("num_hidden_layers", "layers"),
            ("hidden_size", "width"),
            ("num_attention_heads", "heads"),
        ):
            if ours in self.recipe:
                values[theirs] = self.recipe[ours]
        super().__init__(**values)
