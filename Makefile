# `make quickstart` and `make test` set everything up by themselves, from Python >= 3.10 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Recipes then read as you would type them with the environment activated.
SHELL := /bin/bash
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: quickstart notebooks small-bases story-pokemon story-chat story-stages story-alpaca story-methods translation test test-slow lint bench clean
.DEFAULT_GOAL := quickstart
.DELETE_ON_ERROR:  # an environment that was not finished is made again

quickstart: $(VENV)/.base
	python -m data_pipeline configs/data/quickstart.py
	torchrun --standalone --nproc-per-node 1 train.py configs/quickstart.py
	python -m evaluation runs/quickstart
	python sample.py --run runs/quickstart --max-new-tokens 80 --temperature 0.6 --prompt "The city of"
	python sample.py --run runs/quickstart --max-new-tokens 80 --temperature 0.6 --prompt "from __future__ import annotations"
	@echo
	@echo "Report: runs/quickstart/report.html (open it in a browser)"
	@echo "Next:   source $(BIN)/activate"
	@echo "        python sample.py --prompt 'Your own words'"
	@echo "        python train.py configs/quickstart.py --name longer --budget.minutes 30"
	@echo "        python train.py configs/mini.py --dry-run"

# Two small models that know some Spanish and English, to fine-tune; what is done already is not done again.
small-bases: $(VENV)/.base
	python -m data_pipeline configs/data/spanish_parts.py
	python -m data_pipeline configs/data/small_bases.py
	python train.py configs/small_gpt2.py
	python train.py configs/small_llama.py
	python sample.py --run runs/small_gpt2 --max-new-tokens 60 --temperature 0.5 --prompt "La ciudad de"
	python sample.py --run runs/small_llama --max-new-tokens 60 --temperature 0.5 --prompt "La ciudad de"

# The stories of docs/fine_tuning.md on the small bases: each makes what it needs, trains, and asks what was held out.
story-pokemon: small-bases
	$(PIP) --no-build-isolation --editable '.[facts]'
	python -m data_pipeline configs/data/pokemon_qa.py --limit 25 --held-out-fraction 0.25 --out data/pokemon_qa_small
	python train.py configs/pokemon_gpt2_xl_lora_small.py
	python -m evaluation.questions pokemon_gpt2_xl_lora_small data/pokemon_qa_small/held_out.jsonl
	python sample.py --run pokemon_gpt2_xl_lora_small --temperature 0 --ask "¿De qué tipo es Ninetales?"

story-chat: small-bases
	$(PIP) --no-build-isolation --editable '.[facts,quantization]'
	python -m data_pipeline configs/data/pokemon_chat.py --limit 25 --held-out-fraction 0.25 --out data/pokemon_chat_small
	python train.py configs/llama32_3b_qlora_small.py
	python -m evaluation.questions llama32_3b_qlora_small data/pokemon_chat_small/held_out.jsonl
	python -m evaluation.merging llama32_3b_qlora_small
	python sample.py --run llama32_3b_qlora_small --temperature 0 --ask "¿De qué tipo es Ninetales?"

story-stages: small-bases
	python train.py configs/lyrics_stages_small.py
	python sample.py --run lyrics_stages_small_stage_4 --max-new-tokens 80 --temperature 0.7 --prompt "La ciudad de"

story-alpaca: small-bases
	python -m data_pipeline configs/data/alpaca_tasks.py
	python train.py configs/alpaca_sft_small.py
	python -m evaluation.questions alpaca_sft_small data/alpaca_tasks/held_out.jsonl

story-methods: story-alpaca
	python -m evaluation.compare_methods configs/alpaca_sft_small.py --rates 1 3 --questions data/alpaca_tasks/held_out.jsonl

# Executed from clean kernels, with outputs, as pages to read: about two minutes.
notebooks: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[notebooks]'
	jupyter nbconvert --execute --to html --output-dir notebooks/executed notebooks/*.ipynb

# Spanish verses into English: about an hour on two cores (docs/fine_tuning/translation.md).
translation: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[translation]'
	python -m data_pipeline configs/data/translation_es_en.py
	python -m data_pipeline configs/data/translation_base.py
	python train.py configs/translation_base.py
	python train.py configs/translation_es_en.py
	python -m evaluation.translation translation_es_en

test: $(VENV)/.dev
	python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.dev
	python -m pytest -m slow

lint: $(VENV)/.dev
	ruff check .
	ruff format --check .
	mypy

bench: $(VENV)/.dev
	python -m benchmarks.training
	python -m benchmarks.functions
	python -m benchmarks.fine_tuning
	python -m benchmarks.inference
	python -m benchmarks.data

clean:
	rm -rf $(VENV)

# Each set of dependencies is installed once, and again when its pins change.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is not Python 3.10 or newer; choose one: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) setuptools
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --no-build-isolation --editable '.[test,lint]'
	@touch $@
