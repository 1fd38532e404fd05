"""Measurements for Prometheus, under vLLM's names, so that its dashboards show this server too."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inference import Engine
from serving.jobs import Event, Job

# Of vLLM, in seconds.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
WHOLE_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
FINISHED = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "abort"}


class Metrics:
    """The measurements of one server, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, ["model_name"], registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            made = Histogram(f"vllm:{name}", text, ["model_name"], registry=self.registry, buckets=tuple(buckets))
            return made.labels(model)

        self.model = model
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were read.").labels(model)
        self.generation_tokens = counter("generation_tokens", "Tokens that were written.").labels(model)
        finished = Counter(
            "vllm:request_success", "Texts that ended.", ["model_name", "finished_reason"], registry=self.registry
        )
        self.finished = {reason: finished.labels(model, reason) for reason in ("stop", "length", "abort")}
        self.first_token = histogram("time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN)
        self.between_tokens = histogram("inter_token_latency_seconds", "From token to token.", BETWEEN_TOKENS)
        self.whole = histogram("e2e_request_latency_seconds", "From arrival to the last token.", WHOLE_REQUEST)
        self.queue = histogram("request_queue_time_seconds", "From submission to a slot.", WHOLE_REQUEST)

    def watch(self, engine: Engine) -> None:
        """Report what `engine` holds whenever somebody asks."""
        for name, text, value in (
            ("num_requests_running", "Texts that are being written.", lambda: engine.running),
            ("num_requests_waiting", "Texts that wait for a slot.", lambda: engine.waiting),
            ("kv_cache_usage_perc", "Filled share of the cache.", lambda: engine.kv_tokens / engine.kv_capacity),
        ):
            gauge = Gauge(f"vllm:{name}", text, ["model_name"], registry=self.registry)
            gauge.labels(self.model).set_function(value)

    def observe(self, job: Job, event: Event, gap: float | None) -> None:
        """Count what a step brought; `gap` is the time since the text's tokens before."""
        update, count = event.update, len(event.update.token_ids)
        self.generation_tokens.inc(count)
        if update.finish_reason != "cancelled":
            self._observe_pace(job, event, gap)
        if update.finish_reason is not None:
            self.finished[FINISHED[update.finish_reason]].inc()
            if job.running == 0:
                self.whole.observe(event.seconds - job.arrived)

    def _observe_pace(self, job: Job, event: Event, gap: float | None) -> None:
        count = len(event.update.token_ids)
        if gap is not None:
            for _ in range(count):
                self.between_tokens.observe(gap / count)
            return
        request = job.requests[event.index]
        self.prompt_tokens.inc(len(request.prompt) if request.sample == 0 else 0)  # read once for all samples
        self.first_token.observe(event.seconds - job.arrived)
        self.queue.observe(event.update.waited)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
