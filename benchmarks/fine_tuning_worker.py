"""One side of the fine-tuning benchmark in a process of its own, so that memory, threads and allocator are its own."""

from common.threads import bind_threads, keep_freed_memory

bind_threads()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.process import peak_held  # noqa: E402
from common.runs import Run  # noqa: E402
from model.adapters.config import AdapterConfig  # noqa: E402
from model.convert.opening import architecture_of, open_source  # noqa: E402
from model.device import choose_device, choose_precision  # noqa: E402
from model.functions import IGNORE  # noqa: E402
from training.config import BatchConfig, BudgetConfig, ExamplesConfig, OptimizerConfig, RunConfig  # noqa: E402
from training.distribution import World, clip_gradients  # noqa: E402
from training.examples import ExampleData  # noqa: E402
from training.plan import split_batch  # noqa: E402
from training.starting import tokenizer_of  # noqa: E402

# What both sides are told; the optimizer's are the defaults of transformers' Trainer but for a rate that suits LoRA.
RANK, ALPHA, DROPOUT, TARGETS = 16, 32, 0.1, ("c_attn", "c_proj", "c_fc")
RATE, BETAS, DECAY, CLIP = 2e-4, (0.9, 0.999), 0.0, 1.0
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Task:
    """What one worker measures."""

    base: str
    """A Hugging Face directory of GPT-2's layout, with a tokenizer."""
    examples: str
    """A file of examples."""
    max_length: int
    """Tokens of the longest example, with the one before the text."""
    batch: int
    """Examples a step."""
    precision: Literal["fp32", "bf16"]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peer: bool = False
    """Whether transformers and PEFT take the steps."""
    keep_freed: bool = True
    """Let freed memory stay in the process."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def config(self) -> RunConfig:
        return RunConfig(
            start_from=self.base,
            model=architecture_of(self.base),
            adapter=AdapterConfig("lora", rank=RANK, alpha=ALPHA, dropout=DROPOUT, targets=TARGETS),
            examples=ExamplesConfig(files=(self.examples,), max_length=self.max_length),
            batch=BatchConfig(examples_per_step=self.batch, micro_batch_size=self.batch),
            optimizer=OptimizerConfig(
                matrices="adamw", lr=RATE, beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY, grad_clip=CLIP
            ),
            budget=BudgetConfig(steps=MOST_STEPS),
            precision=self.precision,
            device=self.device,
            compile="off",
        )


class Ours:
    """Steps as `training/loop.py` takes them, but for the schedule, spikes and logging; the run is never written."""

    def __init__(self, task: Task) -> None:
        # Here, so that the other side does not hold in memory what it does not use.
        from training.loop import accumulate_gradients
        from training.run import make_job

        config, self.device = task.config(), choose_device(task.device)
        self._accumulate, self.split = accumulate_gradients, split_batch(config, world_size=1)
        precision = choose_precision(self.device, config.precision)
        run = Run(Path(task.base) / "run")
        self.job = make_job(config, run, self.split, World(), self.device, precision)

    @torch.no_grad()
    def loss(self) -> float:
        job = self.job
        batch = job.data.micro_batch(job.windows_of(self.split, 0), self.split.sequence).to(self.device)
        job.model.eval()
        with job.precision.autocast(self.device):
            return float(job.model(batch.inputs, batch.targets, learned=batch.learned)) / batch.losses

    def step(self) -> int:
        job = self.job
        job.model.train()
        _, _, tokens = self._accumulate(job, self.split)
        clip_gradients(job.model, job.config.optimizer.grad_clip)
        for optimizer in job.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        job.progress = job.progress.after(tokens, self.split.windows_per_step)
        return tokens


class Theirs:
    """The same steps by transformers and PEFT as transformers' Trainer takes them, on the same examples."""

    def __init__(self, task: Task) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        config, self.device = task.config(), choose_device(task.device)
        tokenizer = tokenizer_of(open_source(task.base))
        self.data = ExampleData(config.examples, tokenizer, split_batch(config, 1).sequence, config.seed)
        self.batch, self.windows, self.low = task.batch, 0, task.precision == "bf16"
        base: Any = AutoModelForCausalLM.from_pretrained(task.base, dtype=torch.float32, attn_implementation="sdpa")
        base.config.use_cache = False
        lora = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
            target_modules=list(TARGETS),
            task_type="CAUSAL_LM",
            fan_in_fan_out=True,
        )
        torch.manual_seed(config.seed)
        self.model: Any = get_peft_model(base.to(self.device), lora)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)

    def padded(self) -> tuple[dict[str, Tensor], int]:
        """The next examples, as long as the longest of them, and how many of their tokens predict another."""
        train = self.data.train
        numbers = [self.data.row(window)[0] for window in range(self.windows, self.windows + self.batch)]
        lengths = [int(train.lengths[number]) for number in numbers]
        ids, mask = (np.zeros((self.batch, max(lengths)), np.int64) for _ in range(2))
        labels = np.full_like(ids, IGNORE)
        for row, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
            ids[row, :length], mask[row, :length] = train.ids(number), 1
            labels[row, :length] = np.where(train.learned(number), ids[row, :length], IGNORE)
        named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batch = {name: torch.from_numpy(values).to(self.device) for name, values in named.items()}
        return batch, sum(lengths) - self.batch

    def _mean_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            loss: Tensor = self.model(**batch).loss
        return loss

    @torch.no_grad()
    def loss(self) -> float:
        self.model.eval()
        return float(self._mean_loss(self.padded()[0]))

    def step(self) -> int:
        self.model.train()
        batch, tokens = self.padded()
        self._mean_loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.windows += self.batch
        return tokens


def serve(task: Task) -> None:
    """Answer the line "loss" on standard input with that of the next batch without dropout, any other with a step."""
    if task.keep_freed:
        keep_freed_memory()
    stepper = Theirs(task) if task.peer else Ours(task)
    for line in sys.stdin:
        if line.strip() == "loss":
            print(json.dumps({"loss": stepper.loss()}), flush=True)
            continue
        started, worked = time.perf_counter(), time.process_time()
        tokens = stepper.step()
        if stepper.device.type == "cuda":
            torch.cuda.synchronize()
        figures = {
            "tokens/s": tokens / (time.perf_counter() - started),
            "CPU seconds a step": time.process_time() - worked,
            "peak memory MiB": peak_held(stepper.device) / 2**20,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    serve(Task(**json.loads(sys.argv[1])))
