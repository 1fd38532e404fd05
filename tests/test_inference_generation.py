"""Generation: the cache, seeds, stop strings, streams, and a model that is borrowed from training."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from inference_fixtures import VOCAB, make_tokenizer, tiny_config, tiny_model

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference import SamplingOptions, Speed, generate
from inference.streaming import TextStream, first_stop, open_stop
from model import Decoder, KVCache

FAMILIES = {
    "gpt2": {
        "activation": "gelu", "norm": "layer", "norm_gain": True, "bias": True, "position": "learned",
        "qk_norm": False, "embedding_norm": False, "residual_scalars": False, "logit_softcap": None,
    },
    "llama": {
        "activation": "swiglu", "norm_gain": True, "heads": 4, "kv_heads": 2, "qk_norm": False,
        "embedding_norm": False, "residual_scalars": False, "logit_softcap": None,
    },
    "ours": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class ScriptedModel(Decoder):
    """Predicts with certainty: after a text of n tokens the n-th id of the script."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(tiny_config(context_length=512))
        self.script = script

    def forward(self, ids, targets=None, cache=None, last_only=False, counts=None):  # type: ignore[no-untyped-def]
        assert cache is not None and last_only
        cache.place(ids.shape[1], counts)
        cache.advance()
        logits = torch.full((len(ids), 1, VOCAB), -100.0)
        for row, length in enumerate(cache.lengths):
            logits[row, 0, self.script[min(length, len(self.script)) - 1]] = 100.0
        return logits


def recomputed(model: Decoder, tokenizer: Tokenizer, prompt: str, count: int) -> list[int]:
    """Greedy continuation without any cache, under the policy for a full context."""
    context = model.config.context_length
    window, written = [tokenizer.eos_id, *tokenizer.encode(prompt)], []
    with torch.no_grad():
        for _ in range(count):
            if len(window) > context:
                window = [tokenizer.eos_id, *window[-(context // 2) :]]
            written.append(int(model(torch.tensor([window]))[0, -1].argmax()))
            window.append(written[-1])
    return written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", [64, 16, 7, 2])
def test_cache_gives_what_recomputing_gives(family: str, context: int, tokenizer: Tokenizer) -> None:
    # An untied head, because random tied weights like to repeat the last token, which would show little.
    model = tiny_model(context_length=context, tied=False, **FAMILIES[family])
    prompt = {2: "", 7: "def"}.get(context, "The riv")
    expected = recomputed(model, tokenizer, prompt, 40)
    assert len(set(expected)) > 3
    if tokenizer.eos_id in expected:
        expected = expected[: expected.index(tokenizer.eos_id)]
    found = generate(model, tokenizer, prompt, SamplingOptions(temperature=0, max_new_tokens=40))
    assert found[0].token_ids == expected


def test_equal_seeds_give_equal_text_and_others_other(tokenizer: Tokenizer) -> None:
    model = tiny_model(embedding_std=0.05)
    first = generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=30, seed=1))
    again = generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=30, seed=1))
    other = generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=30, seed=2))
    assert first == again
    assert first != other


def test_a_sample_does_not_depend_on_those_beside_it(tokenizer: Tokenizer) -> None:
    model = tiny_model(embedding_std=0.05)
    options = SamplingOptions(max_new_tokens=50, top_k=50, seed=3)  # runs past the context of 32
    many = generate(model, tokenizer, "The", options, num_samples=5)
    assert generate(model, tokenizer, "The", options, num_samples=2) == many[:2]
    assert len({completion.text for completion in many}) == 5
    both = generate(model, tokenizer, ["def", "The"], options, num_samples=2)
    assert both[2:] == many[:2]


def test_global_random_state_and_mode_stay(tokenizer: Tokenizer) -> None:
    model = tiny_model(dropout=0.5)
    for training in (True, False):
        model.train(training)
        before = torch.get_rng_state()
        first = generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=5))
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training is training
        assert generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=5)) == first  # no dropout
    model.train()
    with pytest.raises(ZeroDivisionError):
        generate(model, tokenizer, "The", on_text=lambda *_: 1 / 0)
    assert model.training


def test_autocast_around_the_call_is_respected_and_training_goes_on(tokenizer: Tokenizer) -> None:
    model = tiny_model().train()
    kinds = []
    original = KVCache.append

    def append(self, layer, key, value):  # type: ignore[no-untyped-def]
        kinds.append((self.values.dtype, value.dtype))
        return original(self, layer, key, value)

    KVCache.append = append  # type: ignore[method-assign]
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=3))
            ids = torch.tensor([tokenizer.encode("The river")])
            model(ids[:, :-1], ids[:, 1:]).backward()
    finally:
        KVCache.append = original  # type: ignore[method-assign]
    assert set(kinds) == {(torch.bfloat16, torch.bfloat16)}
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name.endswith("weight"))


def test_rows_that_are_no_tokens_are_never_drawn(tokenizer: Tokenizer) -> None:
    """Though they be the likeliest by far."""
    model = tiny_model(vocab_size=VOCAB + 16, tied=False)
    assert model.head is not None
    with torch.no_grad():
        model.head.weight[VOCAB:] = 50 * torch.randn(16, 32)
        likeliest = model(torch.tensor([[tokenizer.eos_id, *tokenizer.encode("The")]]))[0, -1].argmax().item()
    assert likeliest >= VOCAB
    for temperature in (0.0, 1.0, 5.0):
        options = SamplingOptions(max_new_tokens=40, temperature=temperature)
        for completion in generate(model, tokenizer, "The", options, num_samples=3):
            assert all(number < VOCAB for number in completion.token_ids) and completion.token_ids


def test_finished_samples_leave_and_the_others_go_on(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    model, speed = ScriptedModel([a, b, b, b, tokenizer.eos_id]), Speed()
    options = SamplingOptions(temperature=0, max_new_tokens=20)
    first, second = generate(model, tokenizer, [[], [a, b, b]], options, speed=speed)
    assert (first.text, first.token_ids, first.finish_reason) == ("abbb", [a, b, b, b], "eos")
    assert (second.text, second.token_ids, second.finish_reason) == ("b", [b], "eos")
    assert (speed.prefill_tokens, speed.decode_tokens) == (1 + 4, 4 + 1)


def test_length_and_empty_requests(tokenizer: Tokenizer) -> None:
    model = tiny_model()
    completion = generate(model, tokenizer, "", SamplingOptions(max_new_tokens=3, temperature=0))[0]
    assert len(completion.token_ids) == 3
    assert completion.finish_reason == "length"
    nothing = generate(model, tokenizer, "The", SamplingOptions(max_new_tokens=0))[0]
    assert (nothing.text, nothing.token_ids, nothing.finish_reason) == ("", [], "length")
    with pytest.raises(UserError, match="--num-samples 0"):
        generate(model, tokenizer, "The", num_samples=0)
    with pytest.raises(UserError, match="context of one token"):
        generate(tiny_model(context_length=1), tokenizer, "The")


def test_long_prompt_is_cut_on_the_left_with_a_warning(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(context_length=16)
    prompt = "mountain river town century " * 5
    found = generate(model, tokenizer, prompt, SamplingOptions(temperature=0, max_new_tokens=1))[0]
    captured = capsys.readouterr()
    assert "sees only the last 15" in captured.err
    assert captured.out == ""
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(prompt)[-15:]]])
    assert found.token_ids == [int(model(ids)[0, -1].argmax())]


def test_repetition_penalty_counts_prompt_and_text(tokenizer: Tokenizer) -> None:
    model = tiny_model()
    plain = generate(model, tokenizer, "riv", SamplingOptions(temperature=0, max_new_tokens=30))[0].token_ids
    options = SamplingOptions(temperature=0, max_new_tokens=30, repetition_penalty=100)
    penalized = generate(model, tokenizer, "riv", options)[0].token_ids
    assert len(set(plain)) < 30
    assert len(set(penalized)) == len(penalized)
    assert not set(penalized) & set(tokenizer.encode("riv"))


def stream(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], str]:
    """The pieces that `on_text` saw, and the final text; they must be the same text."""
    pieces: list[str] = []
    completion = generate(
        ScriptedModel([*ids, tokenizer.eos_id]),
        tokenizer,
        "",
        SamplingOptions(temperature=0, max_new_tokens=len(ids) + 1, stop=tuple(stop)),
        on_text=lambda _, text: pieces.append(text),
    )[0]
    assert "".join(pieces) == completion.text
    assert completion.finish_reason == ("stop" if stop and "".join(pieces) != tokenizer.decode(ids) else "eos")
    return pieces, completion.text


def characters(tokenizer: Tokenizer, text: str) -> list[int]:
    return [token for character in text for token in tokenizer.encode(character)]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("xaaabz", ["aab"], "xa"),  # overlaps a false start of itself
        ("aaaaab", ["aab"], "aaa"),
        ("one two three", ["two"], "one "),
        ("one two three", ["wo t", "ne"], "o"),
        ("abcd", ["abcd", "bc"], "a"),  # the one that a reader completes first
        ("abcd", ["abc", "bc"], ""),  # both end together: the longer one
        ("ababab", ["abac"], "ababab"),
        ("ends with par", ["partial"], "ends with par"),
        ("日本語テキスト", ["語テ"], "日本"),
    ],
)
def test_stop_strings_across_token_borders(text: str, stop: list[str], expected: str, tokenizer: Tokenizer) -> None:
    for ids in (characters(tokenizer, text), tokenizer.encode(text)):
        pieces, found = stream(tokenizer, ids, stop)
        assert found == expected
        assert all(expected.startswith("".join(pieces[:n])) for n in range(len(pieces)))


def test_a_stop_string_inside_one_token_ends_the_sample(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("return")
    assert len(ids) < 6, "some token should hold several letters"
    assert stream(tokenizer, ids, ["etu"])[1] == "r"


def test_characters_of_several_tokens_come_out_whole(tokenizer: Tokenizer) -> None:
    text = "aжb🚀🚀c語"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) + 6, "these characters should be byte tokens"
    pieces, found = stream(tokenizer, ids)
    assert found == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[:3] == ["a", "ж", "b"]  # as soon as they are whole


def test_bytes_that_never_become_a_character_are_shown_in_the_end(tokenizer: Tokenizer) -> None:
    rocket = tokenizer.encode("🚀")[-4:]
    for ids in (rocket[:2], [*rocket[:3], *tokenizer.encode("ab")], rocket[1:] * 4, [*rocket[:1], *rocket]):
        assert stream(tokenizer, ids)[1] == tokenizer.decode(ids)


def test_a_real_replacement_character_is_kept(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, tokenizer.encode("a\ufffd\ufffdb\ufffd"))[1] == "a\ufffd\ufffdb\ufffd"


def test_text_stream_gives_nothing_after_a_stop(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer, ["b"])
    given = [text.add(token) for token in characters(tokenizer, "abab")] + [text.close()]
    assert given == ["a", "", "", "", ""]
    assert text.stopped
    assert text.text == "a"


def test_stop_search_helpers() -> None:
    assert first_stop("xyz", []) is None
    assert first_stop("aaab", ["aab"]) == 1
    assert first_stop("abcd", ["abcd", "bc"]) == 1  # all in one token, yet as if letter by letter
    assert first_stop("abcd", ["bc", "abc"]) == 0
    assert open_stop("xaa", ["aab"]) == 2
    assert open_stop("aab", ["aab"]) == 0
    assert open_stop("", ["aab"]) == 0
