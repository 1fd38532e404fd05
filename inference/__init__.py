"""From a trained run to text: loading checkpoints, sampling, generation with a key-value cache."""

from inference.engine import Engine
from inference.generation import Completion, generate
from inference.loading import LoadedRun, load_checkpoint, load_run, read_config
from inference.requests import GenerationRequest, Ticket, TokenLogprob, Update
from inference.sampling import SamplingOptions
from inference.speed import Speed

__all__ = [
    "Completion",
    "Engine",
    "GenerationRequest",
    "LoadedRun",
    "SamplingOptions",
    "Speed",
    "Ticket",
    "TokenLogprob",
    "Update",
    "generate",
    "load_checkpoint",
    "load_run",
    "read_config",
]
