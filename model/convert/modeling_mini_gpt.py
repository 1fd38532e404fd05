"""An exported model of this project's own recipe as transformers runs it: a thin shell around the decoder.

The files beside this one in an exported directory are the project's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.config import ModelConfig
from model.convert.configuration_mini_gpt import MiniGPTConfig
from model.decoder import Decoder
from model.functions import IGNORE


class MiniGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits and losses as every causal language model of transformers gives them."""

    config_class = MiniGPTConfig
    base_model_prefix = "decoder"
    _supports_sdpa = True
    accepts_loss_kwargs = False  # the loss is a mean over its own batch, which Trainer divides by its steps

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(ModelConfig(**config.recipe))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing is drawn here: weights are loaded. Only what is not stored has to be made again."""
        if isinstance(module, Decoder):
            module.make_tables()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.embedding

    def forward(
        self,
        input_ids: Tensor,  # (batch, time)
        attention_mask: Tensor | None = None,  # (batch, past and time), zero where there is padding on the left
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,  # (batch, time), IGNORE where no loss is wanted
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        if inputs_embeds is not None:
            raise NotImplementedError("this model takes input_ids, not inputs_embeds")
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        padded = attention_mask is not None and not bool(attention_mask.all())
        shell = None
        if padded or past_key_values is not None:
            shell = _Past(past_key_values, attention_mask if padded else None, past, input_ids)
        hidden = self.decoder.hidden(input_ids, shell)  # type: ignore[arg-type]
        logits = self.decoder.logits(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            # The mean over all targets, each predicted from the position before it.
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


class _Past:
    """A cache of transformers as the decoder asks for one. Padding stands where no token looks."""

    ragged = True
    documents: Tensor | None = None

    def __init__(self, cache: Cache | None, mask: Tensor | None, past: int, ids: Tensor) -> None:
        self.cache, self.filled, time = cache, past + ids.shape[1], ids.shape[1]
        slots = torch.arange(self.filled, device=ids.device)
        if mask is None:
            self.key_index, self.index, self.ragged = slots, slots[past:], False
            return
        places = mask.cumsum(1) - 1
        self.key_index = places.masked_fill(mask == 0, 2**30)
        self.index = self.key_index[:, -time:]

    def place(self, time: int, counts: None) -> None:
        assert counts is None

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return (key, value) if self.cache is None else self.cache.update(key, value, layer)

    def number_documents(self, starts: Tensor) -> Tensor:
        """Of whole sequences only: the cache of transformers, which may be cut and reordered, has no place for them."""
        if self.cache is not None:
            raise NotImplementedError("attention that ends with the document needs use_cache=False")
        self.documents = starts.cumsum(1)
        return self.documents

    def advance(self) -> None:
        """The cache of transformers counts by itself."""
