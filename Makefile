# PGXS: make, make install, make uninstall. PG_CONFIG names another server than the one on PATH.

EXTENSION = pg_llm
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pg_llm.control)
BUILD = build
PYTHON = python3

SCRIPT = $(BUILD)/pg_llm--$(EXTVERSION).sql
UPGRADES = $(patsubst sql/upgrades/%,$(BUILD)/pg_llm--%,$(wildcard sql/upgrades/*--$(EXTVERSION).sql))
SOURCES = $(shell find sql -name '*.sql') sql/MANIFEST pg_llm.control tools/build.py

DATA_built = $(SCRIPT) $(UPGRADES)
DOCS = README.md
EXTRA_CLEAN = $(BUILD)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

packagedir = $(DESTDIR)$(pkglibdir)/pg_llm/$(EXTVERSION)

$(SCRIPT) $(UPGRADES) &: $(SOURCES)
	$(PYTHON) tools/build.py $(BUILD)

install: install-python

# Byte-compiled here, because the server cannot write there.
.PHONY: install-python
install-python:
	$(MKDIR_P) '$(packagedir)'
	$(INSTALL_DATA) python/pg_llm/*.py '$(packagedir)/'
	$(PYTHON) -m compileall -q --invalidation-mode unchecked-hash -s '$(DESTDIR)' '$(packagedir)'

uninstall: uninstall-python

.PHONY: uninstall-python
uninstall-python:
	rm -rf '$(packagedir)'
	-rmdir '$(dir $(packagedir))'

# Each of these prepares what it needs: see docs/operations.md.

.PHONY: demo test lint bench dist

demo:
	tools/run-in-image python -m demo $(ARGS)

test:
	tools/run-in-image tools/test $(ARGS)

lint:
	tools/run-in-image tools/lint

bench:
	tools/run-in-image python -m bench $(ARGS)

dist:
	mkdir -p $(BUILD)
	git archive --format=zip --prefix=pg_llm-$(EXTVERSION)/ -o $(BUILD)/pg_llm-$(EXTVERSION).zip HEAD
