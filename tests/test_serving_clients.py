"""The `openai` package, as its users know it, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving_fixtures import Running, load, make_chat_run, running

from inference import LoadedRun, SamplingOptions, generate
from model.adapters.attach import activate, attach
from model.adapters.config import AdapterConfig
from model.adapters.files import save_adapter
from serving.options import ServerOptions

PROMPT = "The river "
QUESTION = [{"role": "user", "content": "Näme?"}]
TEMPLATED = "user: Näme?\nassistant: "


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return load(make_chat_run(tmp_path_factory.mktemp("clients") / "tiny"))


@pytest.fixture(scope="module")
def server(loaded: LoadedRun) -> Iterator[Running]:
    with running(loaded, ServerOptions(slots=4)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def plain(loaded: LoadedRun, prompt: str, **options: object) -> str:
    """The same, without a server."""
    chosen = SamplingOptions(**options)  # type: ignore[arg-type]
    return generate(loaded.model, loaded.tokenizer, prompt, chosen)[0].text


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "mini-gpt")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_completion_is_what_the_model_writes_without_a_server(client: openai.OpenAI, loaded: LoadedRun) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == plain(loaded, PROMPT, max_new_tokens=24, temperature=0.0)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None and answer.usage.total_tokens == 24 + len(loaded.tokenizer.encode(PROMPT))
    drawn = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=24, temperature=0.9, top_p=0.9, seed=7,
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2},
    )  # fmt: skip
    options = SamplingOptions(24, 0.9, 20, 0.9, 0.01, 1.2, seed=7)
    assert drawn.choices[0].text == generate(loaded.model, loaded.tokenizer, PROMPT, options)[0].text


def test_samples_and_prompts_come_in_order(client: openai.OpenAI, loaded: LoadedRun) -> None:
    prompts = ["The ", "def ", "Näme "]
    answer = client.completions.create(model="tiny", prompt=prompts, n=2, seed=3, max_tokens=6)
    assert [choice.index for choice in answer.choices] == list(range(6))
    options = SamplingOptions(max_new_tokens=6, seed=3)
    expected = [each.text for each in generate(loaded.model, loaded.tokenizer, prompts, options, num_samples=2)]
    assert [choice.text for choice in answer.choices] == expected
    ids = [loaded.tokenizer.encode(prompt) for prompt in prompts]
    assert client.completions.create(model="tiny", prompt=ids, n=2, seed=3, max_tokens=6).choices == answer.choices
    begun = [[loaded.tokenizer.bos_id, *each] for each in ids]
    assert client.completions.create(model="tiny", prompt=begun, n=2, seed=3, max_tokens=6).choices == answer.choices


def test_streams_join_to_the_whole(client: openai.OpenAI) -> None:
    for extra in ({}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"stop": ["q", "xy"]}):
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "seed": 5, **extra}
        whole = client.completions.create(**asked).choices[0]  # type: ignore[call-overload]
        chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]  # type: ignore[call-overload]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
        if "logprobs" in extra:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [item for chunk in chunks[:-1] for item in getattr(chunk.logprobs, name)]
                assert joined == getattr(whole.logprobs, name)


def test_chat(client: openai.OpenAI, loaded: LoadedRun) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 20, "temperature": 0, "logprobs": True}
    answer = client.chat.completions.create(**asked, top_logprobs=3)  # type: ignore[call-overload]
    content = answer.choices[0].message.content
    assert content == plain(loaded, TEMPLATED, max_new_tokens=20, temperature=0.0)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 20 and all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob == token.top_logprobs[0].logprob for token in tokens)  # greedy
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == content
    assert chunks[-2].choices[0].finish_reason == "length" and deltas[-1].content is None
    assert chunks[-1].choices == [] and chunks[-1].usage == answer.usage


def test_chat_as_clients_write_it(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Nä"}, {"type": "text", "text": "me?"}]
    asked = {"model": "tiny", "max_completion_tokens": 8, "seed": 1, "n": 2}
    one = client.chat.completions.create(messages=QUESTION, **asked)  # type: ignore[call-overload]
    other = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)  # type: ignore[call-overload]
    assert [choice.message.content for choice in one.choices] == [choice.message.content for choice in other.choices]
    assert one.choices[0].message.content != one.choices[1].message.content
    assert one.usage.completion_tokens <= 16


def test_many_at_once_get_what_each_gets_alone(server: Running, loaded: LoadedRun) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                stream = await client.completions.create(
                    model="tiny", prompt=f"{number} ", max_tokens=12, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(number) for number in range(12)))

    expected = [plain(loaded, f"{number} ", max_new_tokens=12, temperature=0.0) for number in range(12)]
    assert asyncio.run(ask()) == expected


def test_errors_have_their_classes(client: openai.OpenAI, loaded: LoadedRun) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature: Input should be less than or equal to 2") as wrong:
        client.completions.create(model="tiny", prompt="a", temperature=3)
    assert wrong.value.type == "invalid_request_error" and wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="context of tiny has 1024; shorten it by 977") as long:
        client.completions.create(model="tiny", prompt=[5] * 2000)
    assert long.value.code == "context_length_exceeded"
    for field in ({"best_of": 2}, {"suffix": "."}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="tiny", prompt="a", **field)  # type: ignore[call-overload]
        assert refused.value.param in field
    with running(loaded, keys=["right", "other"]) as locked:
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as intruder:
            with pytest.raises(openai.AuthenticationError, match="a wrong API key was given"):
                intruder.models.list()
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="other", max_retries=0) as friend:
            assert friend.models.list().data


def test_adapters_are_models_of_their_own(tmp_path: Path) -> None:
    run = make_chat_run(tmp_path / "base", context_length=64)
    tuned = load(run)
    attach(tuned.model, AdapterConfig(method="lora", rank=2, alpha=64), "default")
    for parameter in tuned.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    save_adapter(tuned.model, AdapterConfig(method="lora", rank=2, alpha=64), tmp_path / "adapter", str(run))
    options = SamplingOptions(max_new_tokens=10, temperature=0.0)
    changed = generate(tuned.model, tuned.tokenizer, PROMPT, options)[0].text
    activate(tuned.model, ())
    base = generate(tuned.model, tuned.tokenizer, PROMPT, options)[0].text
    assert changed != base
    with running(load(run), adapters=[f"tuned={tmp_path / 'adapter'}"]) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["base", "tuned"]
            assert client.models.retrieve("tuned").model_extra["parent"] == "base"  # type: ignore[index]
            for model, expected in (("tuned", changed), ("base", base)):
                answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=10, temperature=0)
                assert answer.choices[0].text == expected
