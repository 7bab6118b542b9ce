# Two commands to know: `make demo` and `make test`. Each does its own set-up.
SHELL := /bin/bash
DATA ?=
ROOT ?=
OUT ?= runs/demo

.PHONY: demo test lab bench clean setup

demo: setup
	@.venv/bin/xmodal demo $(if $(DATA),--data "$(DATA)") $(if $(ROOT),--root "$(ROOT)") --out "$(OUT)"

test: setup
	@tools/test.sh

lab: setup
	@.venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs/tutorials/similarity_tour.ipynb

bench: setup
	@for script in benchmarks/*.py; do .venv/bin/python $$script || exit 1; done

setup:
	@tools/setup.sh

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .hypothesis
