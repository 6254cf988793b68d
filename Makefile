# The Python that environments are made with. Their pins (environments/*.txt) were resolved with 3.11.
PYTHON ?= python3
# Options for `make demo`, as in: make demo ARGS="--seeds 1"
ARGS ?=

# nox lives in the cached environment `dev`, which the first use makes: a fresh clone needs only Python.
NOX = dev="$$($(PYTHON) tools/environment.py dev)" && "$$dev" -m nox
# What `make test` runs: all of it, or some, as in: make test SESSIONS="lint core"
SESSIONS ?= lint core trl trl_oldest math_oldest trl_vllm evaluation ablation report openrlhf openrlhf_oldest openrlhf_launcher_oldest verl verl_oldest

.DEFAULT_GOAL := help
.PHONY: help test demo lint format wheel environments clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## Lint, then test the built wheel in each host's own environment
	@$(NOX) --sessions $(SESSIONS)

demo: ## Train with and without refinement on a small model: make demo ARGS="--seeds 1"
	@$(NOX) --sessions demo -- $(ARGS)

lint: ## Check style, format, types and generated documents
	@$(NOX) --sessions lint

format: ## Rewrite the sources in the project's format
	@$(NOX) --sessions format

wheel: ## Build the sdist and the wheel into dist/
	@$(NOX) --sessions build

environments: ## List the cached environments: size, last use
	@$(PYTHON) tools/environment.py --list

clean: ## Remove what builds and checks leave in this folder (cached environments stay)
	rm -rf dist build .nox .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
