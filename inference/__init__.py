"""From a trained run to text: loading checkpoints, sampling, generation with a key-value cache."""

from inference.generation import Completion, Speed, generate
from inference.loading import LoadedRun, load_checkpoint, load_run, read_config
from inference.sampling import SamplingOptions

__all__ = [
    "Completion",
    "LoadedRun",
    "SamplingOptions",
    "Speed",
    "generate",
    "load_checkpoint",
    "load_run",
    "read_config",
]
