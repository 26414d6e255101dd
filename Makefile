PYTHON ?= python3
VENV := .venv
$(VENV)/.installed: requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip sync --quiet --python $(VENV)/bin/python --compile-bytecode --require-hashes requirements.lock
	touch $@
