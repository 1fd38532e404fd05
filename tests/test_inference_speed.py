"""What generation costs."""

from __future__ import annotations

import pytest
from inference_fixtures import VOCAB, make_tokenizer, tiny_model

from inference import SamplingOptions, Speed, generate
from inference.speed import SampleClock, weight_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_that_a_pass_reads_are_all_but_tables(tied: bool) -> None:
    """A tied embedding is the head too."""
    model = tiny_model(tied=tied, position="learned")
    looked_up = ["position_embedding", "value_embeddings"] + ([] if tied else ["embedding"])
    expected = sum(
        4 * parameter.numel() for name, parameter in model.named_parameters() if name.split(".")[0] not in looked_up
    )
    assert weight_bytes(model) == expected > 4 * VOCAB * 32


def test_passes_tokens_and_positions_are_counted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer, speed = tiny_model(tied=False), make_tokenizer(tmp_path), Speed()
    (completion,) = generate(model, tokenizer, [[5, 6]], SamplingOptions(8, 0.0), speed=speed)
    assert len(completion.token_ids) == 8
    assert (speed.prefill_tokens, speed.decode_tokens, speed.decode_passes) == (3, 7, 7)
    assert speed.decode_positions == sum(range(4, 11))
    assert len(speed.first_token_seconds) == 1 and len(speed.token_seconds) == 7
    assert sum(speed.token_seconds) <= speed.decode_seconds + speed.prefill_seconds + 0.1
    read = (7 * weight_bytes(model) + sum(range(4, 11)) * 2 * 2 * 32 * 4) / 7 / 1e6
    assert any(f"reads {read:,.1f} MB a token" in line for line in speed.report(model))


def test_tokens_that_come_together_share_the_time() -> None:
    clock = SampleClock(speed := Speed())
    for tokens in (0, 1, 3, 0):
        clock.note(tokens)
    assert len(speed.first_token_seconds) == 1
    assert len(speed.token_seconds) == 3 and len(set(speed.token_seconds)) == 1
