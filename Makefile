# make demo    the main job on a bare machine: installs, pretrains on faces, transfers to stained tissue, says where the pictures are
# make report  the sweep of the demo, evaluated, as one page: runs/transfer_demo/report.html
# make test    all tests but the slow ones; no network, no GPU. PART=transfer: those of one package
# make docs    the table and the presets of docs/strategies.md, from the files in conf/transfer
PYTHON ?= python3
TORCH ?= 2.13
JOBS ?= 2
PART ?=
PY = .venv/bin/python
INSTALLED = .venv/installed-torch-$(TORCH)
DEV = $(INSTALLED)-dev
.PHONY: demo report test test-slow docs install check clean

demo: $(INSTALLED)
	$(PY) train.py +experiment=transfer_demo
	$(PY) train.py +experiment=transfer_demo transfer=scratch
	@echo && echo "The source, faces:" && $(PY) report.py runs/pretrain_demo
	@echo && echo "The target, stained tissue, from the faces (full) and from a random start (scratch), at equal steps:"
	@$(PY) report.py runs/transfer_demo
	@echo && echo "Next: make report compares six strategies, with evaluations and figures (10 to 15 minutes)."

report: $(INSTALLED)
	$(PY) train.py -m +experiment=transfer_demo +sweep=demo
	$(PY) evaluate.py checkpoint=runs/transfer_demo n=500 sampler.steps=20
	$(PY) report.py runs/transfer_demo

test: $(DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "not slow" -n $(JOBS) --dist worksteal tests/$(PART)

test-slow: $(DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m slow -n $(JOBS) tests/$(PART)

docs: $(INSTALLED)
	$(PY) -m docs.make_strategies

check: $(DEV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

install: $(INSTALLED)

$(INSTALLED): requirements.txt constraints/torch-$(TORCH).txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -r requirements.txt -c constraints/torch-$(TORCH).txt
	rm -f .venv/installed*
	touch $@

constraints/torch-%.txt:
	$(error TORCH=$* is not supported: $(patsubst constraints/torch-%.txt,%,$(wildcard constraints/torch-*.txt)) are)

$(DEV): $(INSTALLED) requirements-dev.txt
	$(PY) -m pip install -q -r requirements-dev.txt -c constraints/torch-$(TORCH).txt
	touch $@

clean:
	rm -rf runs cache generated
