SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env env-tests env-espnet-whisper demo pictures test test-slow lint format bench bench-gpu backbone study-l1 study-kd study-rank study-memory study-lowres clean

BIN := .venv/bin
RECIPE := egs2/lole/asr1
EXP = exp/lole_train_$(1)_raw_lole_mini_seed0
EXPERTS := --experts $(call EXP,experts)
STUDENT := --systems student=$(call EXP,student)
PLOT := PYTHONPATH="$(CURDIR)" $(CURDIR)/$(BIN)/python $(CURDIR)/studies/plot.py
SCRIPTS := find . \( -name '.venv*' -o -name .git -o -name exp -o -name dump -o -path '*/asr1/data' \) -prune -o -type f -name '*.sh' -print0

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## install everything into .venv (PYTHON=... chooses the Python)
	@tools/setup_env.sh

env-tests:  ## add to it what only tests need: gradio, faster-whisper, a browser's driver
	@tools/setup_env.sh --tests

env-espnet-whisper:  ## make .venv-espnet-whisper over .venv, for the baseline espnet_whisper
	@tools/setup_env.sh --espnet-whisper

demo: env  ## run the recipe on the embedded corpus and backbone
	cd $(RECIPE) && PATH="$(CURDIR)/$(BIN):$$PATH" ./run.sh
	@echo "The results are in $(RECIPE)/exp/RESULTS.md"

pictures: env  ## draw what the demo's systems learned into egs2/lole/asr1/exp/images
	cd $(RECIPE) && $(PLOT) mole --mole $(call EXP,mole) --decoded $(call EXP,mole)/decode_agnostic --dumpdir dump/raw \
		--test_sets "$$(cd dump/raw && echo test_*)" --output_dir exp/images
	cd $(RECIPE) && $(PLOT) energy $(EXPERTS) --student $(call EXP,student) --output exp/images/energy.png
	cd $(RECIPE) && $(PLOT) cosines $(EXPERTS) $(STUDENT) --data dump/raw/dev --output exp/images/cosines.png
	cd $(RECIPE) && $(PLOT) states $(EXPERTS) $(STUDENT) --data dump/raw/test_* --output exp/images/states.png

test: env-tests  ## run the unit tests
	$(BIN)/python -m pytest -q -rs

test-slow: env-tests  ## run the tests that train or run the recipe
	$(BIN)/python -m pytest -q -rs -m slow

lint: env  ## check the style of Python and shell files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(SCRIPTS) | xargs -0 $(BIN)/shellcheck -x -P SCRIPTDIR .ci/run

format: env  ## rewrite the Python files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env  ## time the project beside its peers, into benchmarks/RESULTS.md (BENCH="train_step encode" runs only these)
	benchmarks/setup_peers.sh
	PYTHONPATH=.:benchmarks/.peers OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(BENCH)

bench-gpu: env  ## the same on a GPU at the size of Whisper-medium, into benchmarks/gpu/RESULTS.md
	benchmarks/setup_peers.sh
	PYTHONPATH=.:benchmarks/.peers HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks --gpu $(BENCH)

backbone: env  ## train the embedded backbone anew (about 70 minutes on 2 cores with bfloat16 instructions)
	PYTHONPATH=local:. $(BIN)/python -m lole_mini.train_backbone --output models/whisper-nano

study-l1: env  ## how many layers MoLE should share: L1 = 1 .. 6, three seeds, after make demo
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python studies/l1.py

study-kd: env  ## what distillation brings: six variants of the student, three seeds, after make demo
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python studies/kd.py

study-rank: env  ## which rank a student needs, and why distilling outputs alone helps little, three seeds, after make demo
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python studies/rank.py

study-memory: env  ## experts compressed, three seeds, and hundreds of them on disk, after make demo
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python studies/memory.py
	PYTHONPATH="$(CURDIR)" $(BIN)/python studies/expert_cache.py

study-lowres: env  ## what helps languages with little data in MoLE, three seeds, after make demo
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python studies/lowres.py

clean:  ## remove what the demo made: its corpus, its formatted data if they are there, and its experiments
	if grep -qs /lole_mini/ $(RECIPE)/data/train/wav.scp; then rm -rf $(RECIPE)/data/train $(RECIPE)/data/dev $(RECIPE)/data/test_* $(RECIPE)/dump; fi
	rm -rf $(RECIPE)/data/lole_mini $(RECIPE)/exp/*_lole_mini_seed* $(RECIPE)/exp/lole_zero_shot_whisper-nano
