# Everything runs with the Python of .venv, which `setup` creates. An environment that your shell has activated is ignored.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup reproduce-glue tune test status wandb-sync tables bench lint efficiency FORCE
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX

PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
PROFILE ?= $(if $(TASK)$(filter task=%.yaml,$(ARGS)),own,mini)
# A mistyped variable, such as MODELDIR=, would be ignored.
KNOWN := ARGS GLUE_DIR LATEST LAUNCHER MODEL MODEL_DIR PROFILE PYTHON REFERENCE RETRY_FAILED TASK TORCH_INDEX
UNKNOWN := $(strip $(foreach name,$(filter-out $(KNOWN),$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name))))
$(if $(UNKNOWN),$(error $(UNKNOWN) is not a variable of this Makefile ($(KNOWN)); settings are given as ARGS="setting=value"))
$(foreach name,REFERENCE RETRY_FAILED,$(if $(filter-out 0 1,$($(name))),$(error $(name) must be 0 or 1, got $($(name)))))
# `make help` shows these lines.
#= PROFILE=small                                 what is trained: mini, small, long, base, decide, layers, rows, paper or own
#= GLUE_DIR=/path/to/glue                        folder of GLUE's files, a subfolder per task
#= TASK=my_task.yaml                             a task of your own, with PROFILE=own
#= MODEL_DIR=/path/to/encoder                    an encoder of your own, instead of the profile's
#= ARGS="experiment=glue_table2 seed=1,2"        settings of conf/; test, bench, efficiency: their options
#= LAUNCHER=slurm                                where runs are started: local, slurm or ray
#= RETRY_FAILED=1                                train failed runs again
#= REFERENCE=1                                   bench, efficiency: write to the committed results
#= PYTHON=python3.12                             setup: the interpreter of .venv
#= TORCH_INDEX=https://download.pytorch.org/whl/cpu  setup: index of another torch build
#= LATEST=1                                      setup: the newest releases instead of the tested ones
#= MODEL=mpnet_base                              setup: fetch that encoder too (405 MB)
export PROFILE TASK GLUE_DIR MODEL_DIR RETRY_FAILED TORCH_INDEX LAUNCHER

# The overrides that the variables stand for, in the shell's array `overrides`. ARGS are last, so that they win.
define OVERRIDES
quoted() {  # a path as one value in Hydra's grammar, in quotes where it may need them
	case "$$1" in
	    *[!A-Za-z0-9_./-]*) printf "'%s'" "$${1//\'/\\\'}";;
	    */* | *.yaml) printf %s "$$1";;
	    *) printf "'%s'" "$$1";;
	esac
}
$(if $(and $(GLUE_DIR),$(TASK)),$(error GLUE_DIR and TASK exclude each other: a task of your own names its files itself))
$(if $(and $(GLUE_DIR),$(filter file,$(origin PROFILE))),$(error GLUE_DIR needs a profile of GLUE: add PROFILE=small (2 hours on two cores), long, base or paper))
overrides=()
if [ -n "$${GLUE_DIR:-}" ]; then overrides+=(data.source=tsv "data.path=$$(quoted "$$GLUE_DIR")"); fi
if [ -n "$${TASK:-}" ]; then overrides+=("task=$$(quoted "$$TASK")"); fi
if [ -n "$${MODEL_DIR:-}" ]; then overrides+=(model=local "model.path=$$(quoted "$$MODEL_DIR")"); fi
if [ -n "$${LAUNCHER:-}" ]; then overrides+=("launcher=$$LAUNCHER"); fi
overrides+=($(ARGS))
endef

VENV := .venv/bin/python
READY := .venv/ready
# .ci/setup creates .venv/latest if it installed the newest releases. Without LATEST, an environment stays as it was made.
NEWEST := $(if $(wildcard .venv/latest),1,0)
LATEST ?= $(NEWEST)

help: ## List the targets and the variables
	@sed -nE 's/^([a-z-]+):.* ## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r name text; do printf '%-16s %s\n' "$$name" "$$text"; done
	printf '\nVariables, each with an example:\n'
	sed -nE 's/^#= ([^=]+=("[^"]*"|[^ ]*)) +(.*)/\1\t\3/p' Makefile | while IFS=$$'\t' read -r example text; do printf '%-44s %s\n' "$$example" "$$text"; done

setup: $(READY) ## Create .venv and fetch the embedded model and texts
	@$(VENV) -m lora fetch $(if $(findstring command,$(origin MODEL)),$(MODEL))

reproduce-glue: setup ## Train the missing runs of PROFILE and print the tables
	@$(OVERRIDES)
	retry=()
	if [ "$${RETRY_FAILED:-0}" = 1 ]; then retry=(runtime.retry_failed=true); fi
	sweep=0 report=0
	$(VENV) -m lora -m --brief "profile=$$PROFILE" "$${overrides[@]}" "$${retry[@]}" || sweep=$$?
	if [ $$sweep -gt 1 ]; then exit $$sweep; fi  # 1: some runs failed; the others still make a table
	$(VENV) -m lora report --brief "$$PROFILE" "$${overrides[@]}" || report=$$?
	exit $$((sweep ? sweep : report))

tune: setup ## Choose the learning rates of PROFILE's methods by trying several
	@$(OVERRIDES)
	$(VENV) -m lora tune "profile=$$PROFILE" "$${overrides[@]}"

test: setup ## Run the test suite in stages (ARGS="-k metrics -x" goes to pytest)
	@$(VENV) tests/stages.py $(ARGS)

status: $(READY) ## Show which runs of PROFILE are done, running, failed or waiting (ARGS=--watch: until they end)
	@$(OVERRIDES)
	$(VENV) -m lora status "$$PROFILE" "$${overrides[@]}"

wandb-sync: $(READY) ## Upload to W&B what was logged offline in outputs/ (ARGS=runtime.results=FOLDER: and there)
	@mkdir -p outputs
	folders=(outputs)
	for given in $(ARGS); do
		case "$$given" in runtime.results=* | runtime.outputs=*) folders+=("$${given#*=}");; esac
	done
	runs=$$(find "$${folders[@]}" -path '*/wandb/offline-run-*' -prune -print | sort)
	if [ -z "$$runs" ]; then
		echo "nothing was recorded offline in $${folders[*]}; for runs elsewhere: ARGS=runtime.results=FOLDER, as they had it"
		exit 0
	fi
	tr '\n' '\0' <<< "$$runs" | xargs -0 $(VENV) -m wandb sync

tables: setup ## Rebuild every committed table, verdict, page and notebook from the records in results/reference
	@profiles=$$(git ls-files results/reference | sed -n 's|^results/\(reference/[^/]*\)/runs/.*|\1|p' | sort -u)
	if [ -z "$$profiles" ]; then echo "no records are committed under results/reference/" >&2; exit 1; fi
	status=0
	for profile in $$profiles; do
		$(VENV) -m lora report "$$profile" --pages || { code=$$?; [ $$code -eq 1 ] || status=$$code; }  # 1: still growing, as it says
	done
	if [ -n "$$(git ls-files results/reference/efficiency)" ]; then $(VENV) -m lora efficiency --tables --reference || status=$$?; fi
	if [ -n "$$(git ls-files 'results/reference/bench/*/measurements.json')" ]; then $(VENV) -m lora bench --tables --reference || status=$$?; fi
	$(VENV) experiments/published/build.py
	$(VENV) notebooks/execute.py
	exit $$status

bench: setup ## Compare speed with Trainer + PEFT in 6 rounds, an hour or more on two idle cores (ARGS="--rounds 2 --runs 4"; REFERENCE=1 writes to the committed results)
	@$(VENV) -m lora bench $(if $(filter 1,$(REFERENCE)),--reference) $(ARGS)

lint: $(READY) ## Check style, format and the direction of imports
	@$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -c 'from importlinter.cli import lint_imports_command as run; run()'

efficiency: setup ## Measure the memory, storage and time of each method (ARGS="--model roberta_base --rounds 10")
	@$(VENV) -m lora efficiency $(if $(filter 1,$(REFERENCE)),--reference) $(ARGS)

# Created when .ci/setup succeeds; created again when the requirements change, when .venv has lost its interpreter, or when
# LATEST asks for other versions.
$(READY): pyproject.toml constraints.txt $(shell test -x $(VENV) || echo FORCE) $(if $(filter $(NEWEST),$(LATEST)),,FORCE)
	@rm -f $@
	PYTHONS="$(PYTHON)" LATEST="$(LATEST)" .ci/setup
	touch $@
