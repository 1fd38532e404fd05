"""A run as a model of lm-evaluation-harness: it is asked for log-likelihoods and for continuations.

What a model sees before a text, its end-of-text or beginning-of-text id, stands in front of every context, as in
training; so does it where the harness asks a server or a transformers model whose tokenizer adds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from inference import Engine, GenerationRequest, LoadedRun, SamplingOptions, Update
from model.device import Precision

Scored = tuple[float, bool]
"""Summed log-likelihood of a continuation in nats, and whether each token of it is the likeliest."""

_LONGEST = 256  # tokens that are generated where a task sets no limit
_SLOTS = 32  # texts that are written at a time


class HarnessModel(TemplateLM):
    """Scores are worked out in batches of rows of like length, and once where several requests ask for the same row,
    as choices of one token each do."""

    def __init__(self, loaded: LoadedRun, precision: Precision, batch_tokens: int = 4096) -> None:
        """`batch_tokens`: tokens scored at once; without influence on the result but for rounding."""
        super().__init__()
        self.loaded, self.precision, self.batch_tokens = loaded, precision, batch_tokens
        self.max_length = loaded.model.room
        self._generates = max(1, min(_LONGEST, self.max_length // 2))

    @property
    def eot_token_id(self) -> int:
        return self.loaded.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.loaded.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What a cache of requests is known by."""
        return self.loaded.tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of `string`, behind what the model sees before a text unless `add_special_tokens` is False."""
        ids = self.loaded.tokenizer.encode(string)
        return ids if add_special_tokens is False else [self.prefix_token_id, *ids]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text in nats, every token predicted once.

        Windows are the harness's: disjoint ones of the context, but that the last one, if it is short, sees what stood
        before it as well. For texts that fit the context this is the perplexity of `evaluation/perplexity.py`.
        """
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            found = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            for before, predicted in map(make_disjoint_window, found):
                windows.append((None, before, predicted))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Scored]:
        """Each request is a key for the cache, the ids of the context and those of the continuation."""
        asking: dict[tuple[int, ...], list[int]] = defaultdict(list)  # the requests that each row of inputs answers
        for number, (_, context, continuation) in enumerate(requests):
            # What the last token would predict is not asked for; what does not fit is lost at the beginning.
            asking[tuple([*context, *continuation][-(self.max_length + 1) : -1])].append(number)
        scores: list[Scored] = [(0.0, True)] * len(requests)
        for rows in self._batches(list(asking)):
            wanted = [(row, number) for row, ids in enumerate(rows) for number in asking[ids]]
            continuations = [requests[number][2][-self.max_length :] for _, number in wanted]
            found = self._score(rows, [row for row, _ in wanted], continuations)
            for (_, number), score in zip(wanted, found, strict=True):
                scores[number] = score
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], score)
        return scores

    def _batches(self, rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Rows of like length together, the longest first, at most `batch_tokens` or one row at a time."""
        rows = sorted(rows, key=len, reverse=True)
        start = 0
        while start < len(rows):
            count = max(1, self.batch_tokens // max(1, len(rows[start])))
            yield rows[start : start + count]
            start += count

    @torch.no_grad()
    def _score(
        self, rows: list[tuple[int, ...]], places: Sequence[int], continuations: list[list[int]]
    ) -> list[Scored]:
        """Scores of the continuations with which the rows end but for their last token; `places` says which row."""
        model, device = self.loaded.model, self.loaded.device
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.eot_token_id] * (width - len(row))] for row in rows], device=device)
        with self.precision.autocast(device):
            hidden = model.hidden(ids)  # (rows, time, width); padding behind a row changes nothing before it
        scores = []
        for place, continuation in zip(places, continuations, strict=True):
            last = len(rows[place])
            with self.precision.autocast(device):
                logits = model.logits(hidden[place, last - len(continuation) : last])
            targets = torch.tensor(continuation, device=device)
            own = logits.log_softmax(-1).gather(-1, targets[:, None])
            scores.append((own.double().sum().item(), bool((logits.argmax(-1) == targets).all())))
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string, the end of the text or the limit of the task."""
        engine = Engine(self.loaded, slots=min(_SLOTS, max(1, len(requests))), prefill_chunk=self.max_length)
        texts = [""] * len(requests)

        def receive(number: int, update: Update) -> None:
            texts[number] += update.text

        for number, request in enumerate(requests):
            context, wishes = request.args
            options = self._options(wishes)
            prompt = self.loaded.tokenizer.encode(context)[-(self.max_length - 1 - options.max_new_tokens) :]
            engine.submit(GenerationRequest(tuple(prompt), options), partial(receive, number))
        with torch.no_grad(), self.precision.autocast(self.loaded.device):
            engine.run()
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _options(self, wishes: dict[str, Any]) -> SamplingOptions:
        """What a task's `generation_kwargs` ask for, in our terms; greedy unless it wants a temperature."""
        until = wishes.get("until") or []
        sampled = wishes.get("do_sample", wishes.get("temperature", 0) > 0)
        return SamplingOptions(
            max_new_tokens=min(int(wishes.get("max_gen_toks", self._generates)), self.max_length - 2),
            temperature=float(wishes.get("temperature", 1.0)) if sampled else 0.0,
            top_k=wishes.get("top_k") or None,
            top_p=float(wishes.get("top_p", 1.0)),
            stop=tuple(filter(None, [until] if isinstance(until, str) else until)),
            overflow="stop",
        )
