"""The engine: requests that come and go do not change each other."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_fixtures import VOCAB, make_tokenizer, tiny_model
from test_inference_generation import FAMILIES

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference import Engine, GenerationRequest, SamplingOptions, Ticket, Update
from model import Decoder
from model.adapters.attach import activate, attach
from model.adapters.config import AdapterConfig

GREEDY = SamplingOptions(temperature=0, max_new_tokens=12)


class Loaded(NamedTuple):
    model: Decoder
    tokenizer: Tokenizer


class Client:
    """One request and all that it was told."""

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        self.engine, self.updates = engine, list[Update]()
        self.told_at: list[int] = []  # passes of the engine
        self.ticket: Ticket = engine.submit(request, self.receive)

    def receive(self, update: Update) -> None:
        assert not self.updates or self.updates[-1].finish_reason is None, "nothing comes after the end"
        self.updates.append(update)

    @property
    def tokens(self) -> list[int]:
        return [token for update in self.updates for token in update.token_ids]

    @property
    def text(self) -> str:
        return "".join(update.text for update in self.updates)

    @property
    def finish_reason(self) -> str | None:
        return self.updates[-1].finish_reason if self.updates else None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def alone(loaded: Loaded, request: GenerationRequest, **options: Any) -> Client:
    engine = Engine(loaded, slots=1, **options)
    client = Client(engine, request)
    engine.run()
    return client


def mixed_requests(tokenizer: Tokenizer) -> list[GenerationRequest]:
    """Prompts of many lengths with many options."""
    text = tokenizer.encode("def rivern(x): townory mountal history centain population 日本 return")
    options = [
        GREEDY,
        SamplingOptions(max_new_tokens=9, seed=3),
        SamplingOptions(max_new_tokens=40, seed=4, temperature=0.8, top_k=20),
        SamplingOptions(max_new_tokens=6, seed=5, top_p=0.9, repetition_penalty=1.3),
        SamplingOptions(max_new_tokens=20, temperature=0, frequency_penalty=0.7),
        SamplingOptions(max_new_tokens=15, seed=6, min_p=0.01, presence_penalty=0.4),
        SamplingOptions(max_new_tokens=30, seed=7, stop=("e", "日")),
    ]
    return [
        GenerationRequest(tuple(text[: 1 + 5 * number % 23]), options[number % len(options)], sample=number % 3)
        for number in range(21)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_that_come_and_go_get_what_each_gets_alone(family: str, tokenizer: Tokenizer) -> None:
    """Five slots, prompts in pieces of eight, contexts that fill up; a newcomer every other step."""
    loaded = Loaded(tiny_model(tied=False, **FAMILIES[family]), tokenizer)
    engine, clients = Engine(loaded, slots=5, prefill_chunk=8), []
    for request in mixed_requests(tokenizer):
        clients.append(Client(engine, request))
        engine.step()
        engine.step()
    assert engine.running > 1 and engine.waiting > 1
    assert 0 < engine.kv_tokens <= engine.kv_capacity == 5 * 32
    engine.run()
    assert (engine.running, engine.waiting, engine.kv_tokens) == (0, 0, 0)
    found = [client.finish_reason for client in clients]
    assert {"length", "stop"} <= set(found)
    for request, client in zip(mixed_requests(tokenizer), clients, strict=True):
        expected = alone(loaded, request, prefill_chunk=8)
        assert (client.tokens, client.text, client.finish_reason) == (
            expected.tokens, expected.text, expected.finish_reason,
        )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        SamplingOptions,
        max_new_tokens=st.just(4),
        temperature=st.sampled_from([0.0, 5e-324, 1e-30, 1.0, 1e308]),
        top_k=st.sampled_from([None, 1, 2**31]),
        top_p=st.sampled_from([5e-324, 0.5, 1 - 2**-53, 1.0]),
        min_p=st.sampled_from([0.0, 5e-324, 1.0]),
        repetition_penalty=st.sampled_from([0.01, 1.0, 100.0]),
        frequency_penalty=st.sampled_from([-100.0, 0.0, 100.0]),
        presence_penalty=st.sampled_from([-100.0, 0.0, 100.0]),
    )
)
def test_every_option_at_its_limits_writes_tokens(tokenizer: Tokenizer, options: SamplingOptions) -> None:
    request = GenerationRequest(tuple(tokenizer.encode("The")), options, ignore_eos=True)
    assert len(alone(Loaded(tiny_model(embedding_std=5.0), tokenizer), request).tokens) == 4


def test_a_prompt_is_read_the_same_in_pieces(tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(context_length=64, window=6, document_start=tokenizer.eos_id), tokenizer)
    prompt = (*tokenizer.encode("The river townain"), tokenizer.eos_id, *tokenizer.encode("def mounter(x):"))
    request = GenerationRequest(prompt, replace(GREEDY, max_new_tokens=30))
    expected = alone(loaded, request).tokens
    for chunk in (1, 3, 16):
        assert alone(loaded, request, prefill_chunk=chunk).tokens == expected


def test_seeds_and_numbers_of_samples_pick_the_random_stream(tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(embedding_std=0.05), tokenizer)
    prompt = tuple(tokenizer.encode("The"))
    options = SamplingOptions(max_new_tokens=12, seed=3)

    def written(seed: int, sample: int) -> list[int]:
        return alone(loaded, GenerationRequest(prompt, replace(options, seed=seed), sample)).tokens

    assert written(3, 0) == written(3, 0)
    assert len({tuple(written(*each)) for each in ((3, 0), (3, 1), (4, 0), (4, 1))}) == 4


def test_samples_of_one_prompt_are_read_once(tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(embedding_std=0.05), tokenizer)
    prompt, options = tuple(tokenizer.encode("def river")), SamplingOptions(max_new_tokens=5, seed=1)
    engine = Engine(loaded, slots=4)
    clients = [Client(engine, GenerationRequest(prompt, options, sample)) for sample in range(4)]
    engine.run()
    assert engine.speed.prefill_tokens == 1 + len(prompt)
    assert len({tuple(client.tokens) for client in clients}) == 4
    for sample, client in enumerate(clients):
        assert client.tokens == alone(loaded, GenerationRequest(prompt, options, sample)).tokens


def test_a_newcomer_is_read_between_the_steps_of_others(tokenizer: Tokenizer) -> None:
    """While fifteen write and a long prompt is read, everyone gets a token every step, and newcomers come in order."""
    loaded = Loaded(tiny_model(context_length=256), tokenizer)
    engine, endless = Engine(loaded, slots=16, prefill_chunk=16), SamplingOptions(max_new_tokens=200, temperature=0)
    writing = [Client(engine, GenerationRequest((5, number), endless, ignore_eos=True)) for number in range(14)]
    while not all(client.updates for client in writing):
        engine.step()
    long = Client(engine, GenerationRequest((7,) * 100, endless, ignore_eos=True))
    short = Client(engine, GenerationRequest((8,), endless, ignore_eos=True))
    late = Client(engine, GenerationRequest((9,), endless, ignore_eos=True))
    for steps in range(1, 9):
        before = [len(client.tokens) for client in writing]
        engine.step()
        assert [len(client.tokens) for client in writing] == [count + 1 for count in before]
        assert bool(long.updates) is (steps >= 7)  # 101 tokens in pieces of 16
        assert bool(short.updates) is (steps >= 7)  # what is left of the piece is enough for it
    assert engine.waiting == 1 and not late.updates
    engine.cancel(writing[3].ticket)
    engine.step()
    assert writing[3].finish_reason == "cancelled"
    assert late.updates, "a slot that becomes free is used in the same step"


def test_cancelled_wherever_it_is(tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(context_length=128), tokenizer)
    engine, endless = Engine(loaded, slots=2, prefill_chunk=8), SamplingOptions(max_new_tokens=100, temperature=0)
    writing = Client(engine, GenerationRequest((5,), endless, ignore_eos=True))
    engine.step()
    reading = Client(engine, GenerationRequest((6,) * 60, endless, ignore_eos=True))
    waiting = Client(engine, GenerationRequest((7,), endless, ignore_eos=True))
    engine.step()
    assert writing.updates and not reading.updates and (engine.running, engine.waiting) == (2, 1)
    for client in (writing, reading, waiting):
        engine.cancel(client.ticket)
    engine.cancel(Ticket(99))
    engine.step()
    assert [client.finish_reason for client in (writing, reading, waiting)] == ["cancelled"] * 3
    assert (engine.running, engine.waiting, engine.kv_tokens) == (0, 0, 0)
    engine.cancel(writing.ticket)
    assert not engine.step()
    again = GenerationRequest((6,) * 9, GREEDY)
    client = Client(engine, again)
    engine.run()
    assert client.tokens == alone(loaded, again, prefill_chunk=8).tokens


def test_any_thread_may_submit_and_cancel(tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(), tokenizer)
    engine, clients = Engine(loaded, slots=3), list[Client]()
    requests = [GenerationRequest((5 + number,), GREEDY) for number in range(12)]

    def submit(some: Sequence[GenerationRequest]) -> None:
        for request in some:
            clients.append(Client(engine, request))
            engine.cancel(engine.submit(request, lambda update: None))

    threads = [threading.Thread(target=submit, args=(requests[number::3],)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.step():
        pass
    engine.run()
    found = sorted(client.tokens for client in clients)
    assert found == sorted(alone(loaded, request).tokens for request in requests)
    assert len({client.ticket for client in clients}) == len(requests)


def test_an_error_of_a_receiver_takes_nothing_from_the_others(tokenizer: Tokenizer) -> None:
    engine = Engine(Loaded(tiny_model(), tokenizer), slots=2)
    engine.submit(GenerationRequest((5,), GREEDY), lambda update: [][0])
    client = Client(engine, GenerationRequest((6,), GREEDY))
    for _ in range(30):
        try:
            engine.step()
        except IndexError:
            continue
    assert len(client.tokens) == 12 and client.finish_reason == "length"


def test_overflow_policies(tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(context_length=16, tied=False), tokenizer)
    prompt = tuple(tokenizer.encode("The riv"))
    slide = GenerationRequest(prompt, replace(GREEDY, max_new_tokens=40), ignore_eos=True)
    stop = replace(slide, sampling=replace(slide.sampling, overflow="stop"))
    whole, ended = alone(loaded, slide), alone(loaded, stop)
    assert len(whole.tokens) == 40
    assert ended.tokens == whole.tokens[: 16 - len(prompt)] and ended.finish_reason == "length"
    assert (
        alone(loaded, replace(stop, prompt=(5,) * 15)).tokens
        == alone(loaded, replace(slide, prompt=(5,) * 15)).tokens[:1]
    )
    with pytest.raises(UserError, match="prompt has 16 tokens, but the context holds 16"):
        alone(loaded, replace(stop, prompt=(5,) * 16))


def test_impossible_requests_are_refused(tokenizer: Tokenizer) -> None:
    engine = Engine(Loaded(tiny_model(), tokenizer))
    for request, message in (
        (GenerationRequest((VOCAB,)), "token ids that are not among"),
        (GenerationRequest((-1,)), "token ids that are not among"),
        (GenerationRequest((1,), adapter="nobody"), "no adapter 'nobody'; there are none"),
        (GenerationRequest((1,), logprobs=VOCAB + 1), "logprobs 401 is out of range"),
    ):
        with pytest.raises(UserError, match=message):
            engine.submit(request, lambda update: None)
    assert not engine.step()


def plain_logprobs(model: Decoder, ids: Sequence[int]) -> torch.Tensor:  # (time, vocab)
    with torch.no_grad():
        return model(torch.tensor([list(ids)]))[0].log_softmax(-1)


@pytest.mark.parametrize("options", [GREEDY, SamplingOptions(temperature=0.5, top_k=3, seed=2, repetition_penalty=1.5)])
def test_logprobs_are_those_of_a_plain_pass(options: SamplingOptions, tokenizer: Tokenizer) -> None:
    """Whatever temperature, penalties and filters are."""
    model = tiny_model(context_length=64, vocab_size=VOCAB + 16)
    loaded, prompt = Loaded(model, tokenizer), tuple(tokenizer.encode("def rivern(x): town"))
    request = GenerationRequest(prompt, replace(options, max_new_tokens=20), logprobs=3, prompt_logprobs=True)
    engine = Engine(loaded, slots=3, prefill_chunk=5)
    others = [Client(engine, GenerationRequest(prompt[:2], GREEDY)) for _ in range(2)]
    client = Client(engine, request)
    engine.run()
    expected = plain_logprobs(model, [tokenizer.bos_id, *prompt, *client.tokens])
    prompted = client.updates[0].prompt_logprobs
    assert prompted is not None and len(prompted) == len(prompt)
    assert all(update.prompt_logprobs is None for update in client.updates[1:])
    found = [entry for update in client.updates for entry in update.logprobs or ()]
    assert [entry.token for entry in found] == client.tokens
    for place, entry in enumerate([*prompted, *found]):
        assert entry is not None
        row = expected[place]
        assert entry.token == [*prompt, *client.tokens][place]
        assert entry.logprob == pytest.approx(row[entry.token].item(), abs=1e-4)
        usable = row.clone()
        usable[VOCAB:] = -math.inf
        assert [value for _, value in entry.top] == pytest.approx(usable.topk(3).values.tolist(), abs=1e-4)
        assert dict(entry.top).get(entry.token, entry.logprob) == entry.logprob  # the identical float
    assert all(update.logprobs is None for other in others for update in other.updates)


def test_a_prompt_alone_can_be_scored(tokenizer: Tokenizer) -> None:
    loaded, prompt = Loaded(tiny_model(), tokenizer), tuple(tokenizer.encode("The river"))
    options = replace(GREEDY, max_new_tokens=0)
    client = alone(loaded, GenerationRequest(prompt, options, logprobs=0, prompt_logprobs=True))
    (update,) = client.updates
    assert (update.token_ids, update.text, update.finish_reason) == ((), "", "length")
    expected = plain_logprobs(loaded.model, [tokenizer.bos_id, *prompt])
    assert update.prompt_logprobs is not None
    for place, entry in enumerate(update.prompt_logprobs):
        assert entry is not None  # the id that begins a text stands before the first
        assert entry.logprob == pytest.approx(expected[place, prompt[place]].item(), abs=1e-4) and entry.top == ()
    nothing = alone(loaded, GenerationRequest((), options, prompt_logprobs=True)).updates
    assert [update.prompt_logprobs for update in nothing] == [()]


ADAPTERS = {
    "low": AdapterConfig(method="lora"),
    "scaled": AdapterConfig(method="ia3"),
    "before": AdapterConfig(method="prefix", virtual_tokens=4),
}


def adapted_model() -> Decoder:
    """With adapters that change what it writes, one of them positions before the text; none is active."""
    model = tiny_model(tied=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, config in ADAPTERS.items():
            attach(model, config, name)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_(std=0.3)
    activate(model, ())
    return model


def test_adapters_of_single_requests_are_those_of_separate_runs(tokenizer: Tokenizer) -> None:
    model, prompt = adapted_model(), tuple(tokenizer.encode("def"))
    order = ["low", None, "before", "scaled", "low", "before", None, "scaled", "before", "low"]
    requests = []
    for number, name in enumerate(order):
        options = SamplingOptions(seed=number // 4, max_new_tokens=8 + 7 * number % 40)  # some fill the context
        requests.append(GenerationRequest(prompt, options, adapter=name, ignore_eos=True))
    engine, clients = Engine(Loaded(model, tokenizer), slots=6, prefill_chunk=16), []
    for request in requests:
        clients.append(Client(engine, request))
        engine.step()
    engine.run()
    for client, request in zip(clients, requests, strict=True):
        activate(model, () if request.adapter is None else (request.adapter,))
        separate = alone(Loaded(model, tokenizer), replace(request, adapter=None), prefill_chunk=16)
        assert client.tokens == separate.tokens
    activate(model, ())
    assert len({tuple(client.tokens[:8]) for client in clients[:4]}) == 4, "the adapters should write differently"


def test_positions_before_the_text_take_room_of_their_own_requests_only(tokenizer: Tokenizer) -> None:
    engine = Engine(Loaded(adapted_model(), tokenizer))
    options = replace(GREEDY, overflow="stop")
    engine.submit(GenerationRequest((5,) * 28, options), lambda update: None)
    with pytest.raises(UserError, match="prompt has 28 tokens, but the context holds 28"):
        engine.submit(GenerationRequest((5,) * 28, options, adapter="before"), lambda update: None)
