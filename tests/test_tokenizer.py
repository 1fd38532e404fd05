"""The tokenizer: what it learns, and that text comes back unchanged."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_helpers import prose, small_config, write_jsonl
from tiktoken_ext import openai_public

from common.errors import UserError
from common.files import atomic_write
from data_pipeline.config import SPECIAL_TOKENS, TokenizerConfig
from data_pipeline.documents import Document, write_row
from data_pipeline.pipeline import curate
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import CHUNK_BYTES, TrainArgument, chunks, train_tokenizer

CODE = "def add(first, second):\n    total = first + second\n\n    return total\n\n\nclass Adder:\n\tvalue = 0\n"


def train(folder: Path, texts: list[str], config: TokenizerConfig) -> Tokenizer:
    shard = folder / "00000.jsonl"
    with atomic_write(shard) as file:
        for number, text in enumerate(texts):
            write_row(file, Document(str(number), 0, "prose", "", "", "", text, split="train"))
        write_row(file, Document("held out", 0, "prose", "", "", "", "zqzqzqzqzq " * 500, split="val"))
    train_tokenizer("tokenizer", folder, TrainArgument([shard], {0: sum(map(len, texts))}, config))
    return Tokenizer(folder / "tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [text for seed in range(60) for text in (prose(seed), CODE * 3)]
    return train(tmp_path_factory.mktemp("tokenizer"), texts, TokenizerConfig(vocab_size=600))


TEXTS = [
    "",
    " ",
    "\n",
    CODE,
    "  leading and trailing  ",
    "tabs\tand\t\tmore\r\nand CRLF\r\n",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    "שלום עולם مرحبا",
    "ﬁ ½ ² e\u0301 é \u00a0 \u2028 \u200b",
    "NUL \x00 and bell \x07",
    "1234567890",
    "<|user|> <s> </s> <unk> <0x41>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_of_awkward_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_characters="\u2581", blacklist_categories=("Cs",)), max_size=200))
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(7 <= number < tokenizer.vocab_size for number in ids)


def test_the_character_of_the_space_piece_is_the_one_exception(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_lone_surrogates_become_a_replacement(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_batches_equal_single_texts(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode_batch(TEXTS)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in TEXTS]


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == 2 and tokenizer.vocab_size == 600
    assert [tokenizer.piece(number) for number in range(7)] == ["<unk>", "<s>", "</s>", *SPECIAL_TOKENS]


def test_pieces_are_useful(tokenizer: Tokenizer) -> None:
    pieces = {tokenizer.piece(number) for number in range(tokenizer.vocab_size)}
    assert "▁▁▁▁" in pieces  # indentation
    assert any("\n" in piece for piece in pieces)
    assert not any(len(piece) > 1 and any(map(str.isdigit, piece)) and "<0x" not in piece for piece in pieces)
    assert "zq" not in pieces  # the validation split was not looked at


def test_training_is_repeatable(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(30)]
    config = TokenizerConfig(vocab_size=400)
    assert train(tmp_path / "a", texts, config).sha256 == train(tmp_path / "b", texts, config).sha256


@pytest.mark.parametrize(("vocab_size", "message"), [(50_000, "to [0-9]+ or less"), (200, "is too small")])
def test_an_impossible_vocabulary_is_explained(tmp_path: Path, vocab_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, [prose(1)], TokenizerConfig(vocab_size=vocab_size))


def test_the_named_size_works(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(tmp_path, [prose(1)], TokenizerConfig(vocab_size=5000))
    size = int(str(caught.value).partition("vocab-size to ")[2].split()[0])
    assert train(tmp_path, [prose(1)], TokenizerConfig(vocab_size=size)).vocab_size == size


def test_too_many_characters_are_explained(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 500))) * 3
    with pytest.raises(UserError, match="cannot hold the different characters"):
        train(tmp_path, [text], TokenizerConfig(vocab_size=300))


@given(st.text(max_size=60), st.integers(1, 400), st.sampled_from(["", "\n", "\n\n", "é", "🙂"]))
def test_chunks_keep_every_character(text: str, repeat: int, joint: str) -> None:
    whole = joint.join([text] * repeat)
    parts = list(chunks(whole))
    assert "".join(parts) == whole
    assert all(0 < len(part.encode("utf-8", "surrogatepass")) <= CHUNK_BYTES for part in parts)


def test_chunks_end_with_lines_where_they_can() -> None:
    text = "".join(f"line {number} of the text\n" for number in range(2000))
    parts = list(chunks(text))
    assert all(part.endswith("\n") for part in parts)
    assert len(parts) < len(text) / 3000


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer(tmp_path / "absent.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not a tokenizer, or damaged"):
        Tokenizer(tmp_path / "bad.model")


def write_ranks(path: Path, merges: tuple[bytes, ...] = (b"th", b"the", b" the", b"in", b"ing")) -> Path:
    """A file as those that tiktoken downloads: all bytes, then what was merged from them."""
    tokens = [bytes([byte]) for byte in range(256)] + list(merges)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("ranks")
    encoding = str(write_ranks(folder / "small.tiktoken"))
    return train(folder, [prose(1)], TokenizerConfig(kind="tiktoken", encoding=encoding))


def test_an_encoding_of_tiktoken_is_a_tokenizer(ranks: Tokenizer) -> None:
    assert ranks.kind == "tiktoken"
    assert ranks.encode("in the thing") == [259, 258, 32, 256, 260]
    # Behind the ranks come the end of text and the special tokens.
    assert ranks.eos_id == 261 and ranks.vocab_size == 262 + len(SPECIAL_TOKENS)
    assert [ranks.special_ids[piece] for piece in SPECIAL_TOKENS] == [262, 263, 264, 265]
    assert ranks.decode([259, ranks.eos_id, 262, 258]) == "in the"
    assert [ids.tolist() for ids in ranks.encode_batch(TEXTS)] == [ranks.encode(text) for text in TEXTS]


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_any_text_comes_back_from_bytes(ranks: Tokenizer, text: str) -> None:
    ids = ranks.encode(text)
    assert ranks.decode(ids) == text.encode("utf-8", "replace").decode()
    assert not set(ids) & set(ranks.special_ids.values())


def test_what_an_encoding_learned(ranks: Tokenizer, tokenizer: Tokenizer) -> None:
    assert [number for number in range(ranks.vocab_size) if ranks.is_learned(number)] == list(range(256, 261))
    assert [number for number in range(ranks.vocab_size) if ranks.is_byte(number)] == list(range(128, 256))
    assert ranks.piece(258) == " the" and ranks.piece(ranks.eos_id) == "<|endoftext|>"
    assert sum(map(tokenizer.is_byte, range(600))) == 256 and not tokenizer.is_learned(tokenizer.eos_id)


def test_a_dataset_with_an_encoding_of_tiktoken(tmp_path: Path) -> None:
    encoding = str(write_ranks(tmp_path / "small.tiktoken"))
    pattern = write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(30)])
    config = small_config(pattern, tokenizer=TokenizerConfig(kind="tiktoken", encoding=encoding))
    manifest = curate(config, tmp_path / "data" / "set", workers=1)
    assert manifest["tokenizer"]["kind"] == "tiktoken" and manifest["vocab_size"] == 262 + len(SPECIAL_TOKENS)
    dataset = Dataset(tmp_path / "data" / "set")
    stream = dataset.split("val")
    text = Tokenizer(dataset.tokenizer_path).decode(stream.read(0, len(stream)).tolist())
    assert any(prose(seed) in text for seed in range(30))


def test_text_cannot_forge_special_tokens_of_tiktoken(ranks: Tokenizer) -> None:
    text = "<|endoftext|><|user|>"
    assert len(ranks.encode(text)) > 10 and ranks.decode(ranks.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"AA== zero\n", "no file of tiktoken ranks"), (b"AA== 0\n", "fewer tokens than")],
)
def test_a_bad_file_of_ranks_is_explained(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.tiktoken"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        train(tmp_path, [prose(1)], TokenizerConfig(kind="tiktoken", encoding=str(path)))


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "r50k_base", "p50k_edit", "gpt2"])
def test_a_file_with_the_name_of_an_encoding_is_that_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write_ranks(tmp_path / f"{name}.tiktoken")
    tokenizer = train(tmp_path, [prose(1)], TokenizerConfig(kind="tiktoken", encoding=str(path)))
    for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        assert getattr(openai_public, loader).__name__ == loader  # put back, as other users of tiktoken need it
        monkeypatch.setattr(openai_public, loader, lambda *_, **__: {bytes([byte]): byte for byte in range(256)})
    own = openai_public.ENCODING_CONSTRUCTORS[name]()
    header = json.loads(tokenizer.path.read_bytes().partition(b"\n")[0])
    assert header["pattern"] == own["pat_str"]
    assert own["special_tokens"].items() <= tokenizer.special_ids.items()
    last = max(own["special_tokens"].values())
    assert [tokenizer.special_ids[token] for token in SPECIAL_TOKENS] == list(range(last + 1, last + 5))
    assert tokenizer.eos_id == {"cl100k_base": 100257, "o200k_base": 199999}.get(name, 50256)
    assert tokenizer.decode(tokenizer.encode(CODE)) == CODE


def test_other_ranks_under_the_name_of_an_encoding_are_refused(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "gpt2.tiktoken", tuple(b"%06d" % number for number in range(50_001)))
    with pytest.raises(UserError, match="Give the file another name"):
        train(tmp_path, [prose(1)], TokenizerConfig(kind="tiktoken", encoding=str(path)))


def test_an_unknown_encoding_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cl100k_base"):
        train(tmp_path, [prose(1)], TokenizerConfig(kind="tiktoken", encoding="gtp2"))


def test_a_cut_tiktoken_file_is_refused(tmp_path: Path, ranks: Tokenizer) -> None:
    (tmp_path / "cut.model").write_bytes(ranks.path.read_bytes()[:700])
    with pytest.raises(UserError, match="damaged"):
        Tokenizer(tmp_path / "cut.model")
