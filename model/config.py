"""What the decoder can be: one flat config for GPT-2, Llama 3 and the project's own recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The decoder's architecture. The defaults make 48M parameters; `preset("mini")` is the project's recipe."""

    vocab_size: int = 32_768
    """Rows of the embedding; must be the tokenizer's vocabulary size."""
    context_length: int = 1024
    """Longest sequence, in tokens."""
    layers: int = 10
    """Number of blocks."""
    width: int = 512
    """Size of the residual stream."""
    heads: int = 4
    """Attention heads; few large heads are cheaper than many small ones at equal width."""
    kv_heads: int | None = None
    """Key and value heads for grouped-query attention; by default as many as `heads`."""
    head_dim: int | None = None
    """Size of one head; by default width / heads."""
    mlp_width: int | None = None
    """Hidden size of the feed-forward layer; by default 4 * width."""
    activation: Literal["relu2", "gelu", "swiglu"] = "relu2"
    """Feed-forward non-linearity: squared ReLU (Primer), tanh-approximated GELU (GPT-2), SwiGLU (Llama)."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm, always before attention and feed-forward and before the head."""
    norm_gain: bool = False
    """Learn a gain (and, with `bias`, an offset) in every norm."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""
    bias: bool = False
    """Biases in linear layers and LayerNorm."""
    position: Literal["rope", "learned"] = "rope"
    """Rotary or learned absolute positions."""
    rope_base: float = 10_000.0
    """Wavelength base of the rotary positions."""
    rope_factor: float = 1.0
    """Llama 3's stretching of long rotary waves for a longer context (arXiv 2407.21783); 1 for none."""
    rope_low_frequency: float = 1.0
    """With a `rope_factor`: waves that turn less often in the original context are stretched by all of it."""
    rope_high_frequency: float = 4.0
    """With a `rope_factor`: waves that turn more often in the original context stay as they are."""
    rope_original_context: int = 8192
    """With a `rope_factor`: the context that the model was first trained with."""
    window: int | None = None
    """Sliding-window attention: a token sees this many tokens, itself among them; None for all before it."""
    document_start: int | None = None
    """Id of the token that begins a document, which attention then does not reach back over; None lets it."""
    qk_norm: bool = True
    """RMS-normalise queries and keys, which bounds the attention logits."""
    attention_scale: float | None = None
    """Factor on the attention logits; by default head_dim ** -0.5."""
    embedding_norm: bool = True
    """Normalise the embedding output."""
    residual_scalars: bool = True
    """Learn per block how much of the stream, and of the embedding output, goes on into it."""
    logit_softcap: float | None = 15.0
    """Bound logits smoothly to ± this value: cap * tanh(logits / cap)."""
    value_embeddings: int = 0
    """Blocks (every second one, counted from the last) whose values take in an embedding of the token itself."""
    tied: bool = True
    """Share the embedding matrix with the output head."""
    init_std: float | None = None
    """Standard deviation of the weight matrices; by default width ** -0.5."""
    embedding_std: float = 0.02
    """Standard deviation of the embedding."""
    zero_init_projections: bool = True
    """Start attention and feed-forward outputs (and an untied head) at zero; else scaled by (2 * layers) ** -0.5."""
    dropout: float = 0.0
    """Dropout on the embedding, attention weights and residual branches."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or values that do not go together."""
        sizes = ("vocab_size", "context_length", "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width")
        for name in (*sizes, "window", "rope_original_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.{name} must be at least 1, not {value}")
        amounts = ("rope_base", "rope_low_frequency", "norm_eps", "attention_scale", "logit_softcap", "init_std")
        for name in (*amounts, "embedding_std"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"model.{name} must be positive, not {value}")
        if self.logit_softcap is not None and self.logit_softcap > 40:
            raise UserError(f"model.logit_softcap must be at most 40, not {self.logit_softcap}; None for no cap")
        if self.rope_factor < 1:
            raise UserError(f"model.rope_factor must be at least 1, not {self.rope_factor}; 1 for no stretching")
        if self.rope_factor > 1 and self.position != "rope":
            raise UserError("model.rope_factor does nothing with learned positions; unset it")
        if self.rope_high_frequency <= self.rope_low_frequency:
            raise UserError(
                f"model.rope_high_frequency {self.rope_high_frequency} must be above model.rope_low_frequency "
                f"{self.rope_low_frequency}"
            )
        if self.document_start is not None and not 0 <= self.document_start < self.vocab_size:
            raise UserError(f"model.document_start {self.document_start} is no id of a vocabulary of {self.vocab_size}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be at least 0 and below 1, not {self.dropout}")
        if self.head_dim is None and self.width % self.heads:
            raise UserError(f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        if self.heads % self.key_value_heads:
            raise UserError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if not 0 <= self.value_embeddings <= (self.layers + 1) // 2:
            raise UserError(
                f"model.value_embeddings must be between 0 and {(self.layers + 1) // 2}, every second of {self.layers} "
                f"layers, not {self.value_embeddings}"
            )
        if self.position == "rope" and self.head_size % 2:
            raise UserError(f"rotary positions need an even head size, not {self.head_size}")

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.width // self.heads

    def has_value_embedding(self, layer: int) -> bool:
        return (self.layers - 1 - layer) in range(0, 2 * self.value_embeddings, 2)

    @property
    def mlp_size(self) -> int:
        return self.mlp_width or 4 * self.width
