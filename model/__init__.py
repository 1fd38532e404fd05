"""The network: a hand-written decoder whose config expresses GPT-2, Llama and the project's own recipe."""

from model.cache import KVCache
from model.config import ModelConfig
from model.decoder import Decoder

__all__ = ["Decoder", "KVCache", "ModelConfig"]
