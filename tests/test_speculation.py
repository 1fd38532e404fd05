"""Speculative decoding: faster, and otherwise the same."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from inference_fixtures import VOCAB, make_run, make_tokenizer, tiny_model
from scipy.stats import chisquare
from test_engine import Client, Loaded, adapted_model, alone, mixed_requests

from common.errors import UserError
from common.runs import Run
from data_pipeline.tokenizer import Tokenizer
from inference import Engine, GenerationRequest, LoadedRun, SamplingOptions, Ticket, load_run
from inference.choosing import BatchOptions, kept
from inference.proposers import DraftModel, PromptLookup
from inference.row import Row
from inference.speculation import Proposer, _drawn
from model import Decoder
from model.adapters.attach import activate

GREEDY = SamplingOptions(temperature=0, max_new_tokens=30)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return load_run(Run(make_run(tmp_path_factory.mktemp("runs") / "draft")))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def together(loaded: Loaded, requests: Sequence[GenerationRequest], proposer: Proposer | None) -> list[Client]:
    """The requests one step after the other in five slots."""
    engine, clients = Engine(loaded, slots=5, prefill_chunk=8, proposer=proposer), []
    for request in requests:
        clients.append(Client(engine, request))
        engine.step()
    engine.run()
    assert (engine.running, engine.kv_tokens) == (0, 0)
    return clients


def test_proposals_of_the_text_change_no_token(tokenizer: Tokenizer) -> None:
    """Of no seed, and whatever the options are, though rows accept different numbers; the contexts fill up."""
    loaded = Loaded(tiny_model(tied=False, context_length=64), tokenizer)
    requests = []
    for number, request in enumerate(mixed_requests(tokenizer)):
        sampling = replace(request.sampling, top_k=2 + number % 2, max_new_tokens=70)  # repeats itself now and then
        requests.append(replace(request, sampling=sampling, logprobs=2 if number % 4 == 0 else None))
    lookup = PromptLookup(tokens=5, match=1)
    accepted = Counter[int]()
    lookup.learn = lambda row, proposed, count: accepted.update([count])  # type: ignore[method-assign]
    plain, quick = together(loaded, requests, None), together(loaded, requests, lookup)
    assert accepted[0] and accepted[1] and accepted[2] and sum(accepted.values()) > 150, accepted
    for expected, found in zip(plain, quick, strict=True):
        assert (found.tokens, found.text, found.finish_reason) == (
            expected.tokens, expected.text, expected.finish_reason,
        )  # fmt: skip
        theirs = [entry for update in expected.updates for entry in update.logprobs or ()]
        ours = [entry for update in found.updates for entry in update.logprobs or ()]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.token == other.token and mine.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_greedy_text_is_the_same_with_any_draft(tokenizer: Tokenizer, draft: LoadedRun) -> None:
    for model in (tiny_model(tied=False, context_length=64), draft.model, adapted_model()):
        loaded = Loaded(model, tokenizer)
        requests = [
            replace(request, sampling=replace(GREEDY, max_new_tokens=30 + 2 * number))
            for number, request in enumerate(mixed_requests(tokenizer)[:9])
        ]
        plain = together(loaded, requests, None)
        quick = together(loaded, requests, DraftModel(draft, tokenizer, tokens=3))
        assert [client.tokens for client in quick] == [client.tokens for client in plain]


def test_adapters_and_proposals_go_together(tokenizer: Tokenizer) -> None:
    loaded = Loaded(adapted_model(), tokenizer)
    requests = [
        GenerationRequest((9, 8, 9), replace(GREEDY, temperature=1.0, top_k=2), number, adapter=name, ignore_eos=True)
        for number, name in enumerate(["before", "low", None, "before", "scaled", "low"])
    ]
    plain, quick = (together(loaded, requests, each) for each in (None, PromptLookup(4, match=1)))
    assert [client.tokens for client in quick] == [client.tokens for client in plain]


def test_a_perfect_draft_writes_several_tokens_a_step(tokenizer: Tokenizer, draft: LoadedRun) -> None:
    request = GenerationRequest((9, 8), replace(GREEDY, max_new_tokens=25), ignore_eos=True)
    client = alone(Loaded(draft.model, tokenizer), request, proposer=DraftModel(draft, tokenizer, tokens=4))
    assert [len(update.token_ids) for update in client.updates] == [1, 5, 5, 5, 5, 4]


def test_what_repeats_itself_is_proposed_to_go_on(tokenizer: Tokenizer) -> None:
    for ids, expected in (
        ([1, 7, 8, 9, 5, 6, 7, 8, 9], [5, 6, 7, 8]),
        ([1, 2, 3, 2, 3, 2, 3], [2, 3, 2, 3]),
        ([4, 4, 4, 4], [4, 4, 4, 4]),
        ([1, 2, 3, 4], []),
        ([2, 3], []),
        ([1] * 31, [1]),  # there is room for one and the token that follows it
    ):
        row = Row(Ticket(0), GenerationRequest(tuple(ids), GREEDY), lambda update: None, tokenizer, VOCAB, room=33)
        (proposal,) = PromptLookup(tokens=4, match=2).propose([row])
        assert proposal.tokens == expected


def test_proposing_stops_where_little_is_accepted(tokenizer: Tokenizer, draft: LoadedRun) -> None:
    proposer, proposed = DraftModel(draft, tokenizer, tokens=4), list[int]()
    original = proposer.propose
    proposer.propose = lambda rows: [proposed.append(len(p.tokens)) or p for p in original(rows)]  # type: ignore
    request = GenerationRequest((9, 8), replace(GREEDY, max_new_tokens=120), ignore_eos=True)
    alone(Loaded(tiny_model(seed=7, tied=False, context_length=256), tokenizer), request, proposer=proposer)
    assert max(proposed[:3]) == 4 and proposed.count(0) > 2 * (len(proposed) - proposed.count(0))


def test_a_draft_of_another_tokenizer_is_refused(tokenizer: Tokenizer, draft: LoadedRun, tmp_path: Path) -> None:
    class Other(NamedTuple):
        sha256: str

    with pytest.raises(UserError, match="cannot draft: its tokenizer"):
        DraftModel(draft, Other("0" * 64))  # type: ignore[arg-type]


def test_a_draft_with_positions_before_the_text_is_refused(tokenizer: Tokenizer, draft: LoadedRun) -> None:
    model = adapted_model()
    activate(model, ("before",))
    with pytest.raises(UserError, match="trained positions before a text"):
        DraftModel(replace(draft, model=model), tokenizer)


class Letters:
    """In place of a tokenizer, of which there is none with eight tokens: every id is a letter, none ends a text."""

    bos_id, eos_ids, sha256 = 0, (), "letters"

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + token) for token in ids)

    def unused_ids(self, rows: int) -> list[int]:
        return []


LENGTH = 3
OPTIONS = {
    "plain": SamplingOptions(max_new_tokens=LENGTH),
    "top-k": SamplingOptions(max_new_tokens=LENGTH, temperature=0.8, top_k=4),
    "top-p": SamplingOptions(max_new_tokens=LENGTH, temperature=1.2, top_p=0.7),
}


def eight_letters(seed: int) -> Decoder:
    return tiny_model(seed, vocab_size=8, tied=False, width=16, heads=1, layers=1, init_std=0.3)


def enumerated(model: Decoder, prompt: Sequence[int], options: SamplingOptions) -> dict[tuple[int, ...], float]:
    """The probability of every continuation."""
    texts = list(itertools.product(range(8), repeat=LENGTH))
    with torch.no_grad():
        logits = model(torch.tensor([[0, *prompt, *text[:-1]] for text in texts]))[:, len(prompt) :]
    rows = logits.flatten(0, 1)
    probability = kept(rows, BatchOptions([options] * len(rows))).softmax(-1).view(len(texts), LENGTH, 8)
    found = probability.gather(2, torch.tensor(texts)[:, :, None]).prod(dim=1).squeeze(1).tolist()
    return {text: value for text, value in zip(texts, found, strict=True) if value > 0}


def sampled(
    model: Decoder, prompt: tuple[int, ...], options: SamplingOptions, proposer: Proposer
) -> Counter[tuple[int, ...]]:
    engine = Engine(Loaded(model, Letters()), slots=100, proposer=proposer)  # type: ignore[arg-type]
    clients = [Client(engine, GenerationRequest(prompt, options, sample)) for sample in range(2500)]
    engine.run()
    return Counter(tuple(client.tokens) for client in clients)


def chance(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of frequencies as far from the expected ones as those found; rare texts are taken together."""
    assert set(found) <= set(expected)
    count = sum(found.values())
    common = [text for text, value in expected.items() if value * count >= 5]
    observed = [found[text] for text in common]
    wanted = [expected[text] * count for text in common]
    if count - sum(wanted) > 1e-6 * count:
        observed.append(count - sum(observed))
        wanted.append(count - sum(wanted))
    return float(chisquare(observed, wanted).pvalue)


class Draft(NamedTuple):
    model: Decoder
    tokenizer = Letters()
    device = torch.device("cpu")


def proposer_of(kind: str) -> Proposer:
    if kind == "text":
        return PromptLookup(tokens=3, match=1)
    return DraftModel(Draft(eight_letters(5)), Letters(), tokens=2)  # type: ignore[arg-type]


PROMPT = (3, 4, 5, 3, 1, 3, 4, 2, 6, 3)


@pytest.mark.parametrize("kind", ["text", "draft"])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_written_is_distributed_as_without(kind: str, name: str) -> None:
    model = eight_letters(3)
    expected = enumerated(model, PROMPT, OPTIONS[name])
    assert chance(sampled(model, PROMPT, OPTIONS[name], proposer_of(kind)), expected) > 1e-3


def drawn_from_the_model(target, draft, proposed, uniform):  # type: ignore[no-untyped-def]
    """The right rule, but in the place of a refused token stands one of the whole target."""
    for place, token in enumerate(proposed):
        if uniform() * draft[place, token] >= target[place, token]:
            return [*proposed[:place], _drawn(target[place], uniform)]
    return [*proposed, _drawn(target[len(proposed)], uniform)]


WRONG = {
    "all of the text": ("text", "agreeing", lambda drawn, proposed: [*proposed, drawn[-1]]),
    "all of a draft": (
        "draft",
        "accept",
        lambda target, _, proposed, uniform: [*proposed, _drawn(target[-1], uniform)],
    ),
    "another in its place": ("draft", "accept", drawn_from_the_model),
}


@pytest.mark.parametrize(("kind", "rule", "wrong"), WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_noticed(kind: str, rule: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = eight_letters(3), OPTIONS["plain"]
    monkeypatch.setattr(f"inference.speculation.{rule}", wrong)
    found = sampled(model, PROMPT, options, proposer_of(kind))
    assert chance(found, enumerated(model, PROMPT, options)) < 1e-6
