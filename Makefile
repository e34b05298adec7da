# `make quickstart` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.installed-test
PARITY := .venv-parity

.PHONY: quickstart test parity lint format clean

quickstart: $(INSTALLED)
	$(VENV)/bin/scaling quickstart

test: $(TESTED)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile  # files side by side: compiling keeps one core busy

# PyTorch, in an environment of its own: with it, `make test` also holds models against transformers.
parity: $(PARITY)/.installed

lint: $(TESTED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(TESTED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(PARITY) build dist *.egg-info

# uv where it is installed, because it takes seconds; else venv and pip.
define install
	if command -v uv >/dev/null 2>&1; then \
		{ test -x $(VENV)/bin/python || uv venv --quiet --python $(PYTHON) $(VENV); } && \
		uv pip install --quiet --python $(VENV)/bin/python -e '$(1)'; \
	else \
		{ test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV); } && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '$(1)'; \
	fi
endef

$(INSTALLED): pyproject.toml
	@echo "installing into $(VENV) (once)"
	@$(call install,.)
	@touch $@

$(TESTED): pyproject.toml
	@echo "installing into $(VENV) with what the tests need (once)"
	@$(call install,.[test])
	@touch $@ $(INSTALLED)

# One version by name, because a range may bring gigabytes of CUDA.
$(PARITY)/.installed:
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers>=4.50,<5'
	@touch $@
