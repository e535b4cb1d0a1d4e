# make setup | quickstart | test | test-aot | bench-runtimes | lint | docs | notebook. Each works alone on a machine that has Python 3.11+ with pip, and make.

# The first of these that is new enough: on some systems python3 is older and only python3.11 is not.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
AOT := .venv-aot
RUNTIMES := .venv-runtimes

.PHONY: setup quickstart test test-aot bench-runtimes lint lock docs notebook clean

setup: $(STAMP)

# The locked packages, checked by hash, then this project itself as an editable install. They are compiled here, or each
# process would compile the sources of jax where Python is told to write no bytecode. The stamp makes a second call free;
# a changed lock or pyproject.toml installs again. uv from the PATH, else by pip into the environment. Some systems ship
# Python without ensurepip, so the environment gets no pip of its own: `uv pip` serves.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv
	@set -e; \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check uv; uv=$(BIN)/uv; fi; \
	echo "installing requirements.lock with $$uv"; \
	"$$uv" pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock; \
	"$$uv" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(STAMP)
	$(BIN)/dynpix train --config=quickstart.py --workdir=runs/quickstart
	$(BIN)/dynpix eval --config=quickstart.py --workdir=runs/quickstart

# More arguments for pytest: make test ARGS="-m slow tests/ops"
# Three processes, one more than the cores of a small machine: some wait for programs that they start. Whole files each: what
# a file compiles its tests share. Bytecode is written, whatever the environment says, and that of the package beforehand:
# or each of these processes, and of those that tests start, would compile its sources again.
test: $(STAMP)
	@$(BIN)/python -m compileall -q -j 0 dynpix_jax configs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

# The kernels compiled for accelerators that are not here. The compilers come with jax's plugins (1.1 GB), into an
# environment of its own that sees the packages of .venv: .venv stays as it is locked. --no-deps: compiling needs none of
# the CUDA libraries that the plugin would bring along.
test-aot: $(AOT)/.installed
	TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 $(AOT)/bin/python -m pytest -m aot $(ARGS)

$(AOT)/.installed: $(STAMP)
	test -x $(AOT)/bin/python || $(BIN)/python -m venv --without-pip $(AOT)
	@set -ef; \
	folder='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$folder")')" >"$$($(AOT)/bin/python -c "$$folder")/base.pth"; \
	packages=$$($(BIN)/python -c 'from importlib.metadata import requires, version; jax = version("jax"); \
	  libtpu = [name.split(";")[0] for name in requires("jax") if name.startswith("libtpu")]; \
	  print(*libtpu, f"jax-cuda13-plugin=={jax}", f"jax-cuda13-pjrt=={jax}")'); \
	echo "installing $$packages"; \
	"$$(command -v uv || echo $(BIN)/uv)" pip install --quiet --python $(AOT)/bin/python --no-deps $$packages
	@touch $@

# Networks in other runtimes, which are installed into an environment of their own that sees the packages of .venv.
bench-runtimes: $(RUNTIMES)/.installed
	JAX_PLATFORMS=cpu $(RUNTIMES)/bin/python -m dynpix_jax.cli.main bench runtimes $(ARGS)

$(RUNTIMES)/.installed: $(STAMP)
	test -x $(RUNTIMES)/bin/python || $(BIN)/python -m venv --without-pip $(RUNTIMES)
	@set -e; folder='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$folder")')" >"$$($(RUNTIMES)/bin/python -c "$$folder")/base.pth"; \
	"$$(command -v uv || echo $(BIN)/uv)" pip install --quiet --python $(RUNTIMES)/bin/python torch onnx onnxruntime openvino
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dynpix_jax tools

# Write requirements.lock anew (needs uv). One list of versions for Python 3.11 to 3.13 (--fork-strategy fewest), so that
# all of them run the same jax; no index address is written. The extras cuda13 and tpu stay out: see README, Install.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade --output-file requirements.lock

# The notebooks, in the browser. To store their outputs: .venv/bin/jupyter execute --inplace notebooks/*.ipynb
notebook: $(STAMP)
	$(BIN)/jupyter lab notebooks

# The site; its search needs a server: python -m http.server -d site
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv $(AOT) $(RUNTIMES) runs site .pytest_cache .ruff_cache .mypy_cache .hypothesis
