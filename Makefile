# PGXS: make, make install, make uninstall. PG_CONFIG names another server than the one on PATH.

EXTENSION = pg_llm
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pg_llm.control)
BUILD = build
PYTHON = python3

SCRIPT = $(BUILD)/pg_llm--$(EXTVERSION).sql
UPGRADES = $(patsubst sql/upgrades/%,$(BUILD)/pg_llm--%,$(wildcard sql/upgrades/*--$(EXTVERSION).sql))
SOURCES = $(shell find sql -name '*.sql') sql/MANIFEST pg_llm.control tools/build.py

DATA_built = $(SCRIPT) $(UPGRADES)
EXTRA_CLEAN = $(BUILD)

PG_CONFIG ?= pg_config
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null))
ifneq ($(PGXS),)
include $(PGXS)

packagedir = $(DESTDIR)$(pkglibdir)/pg_llm/$(EXTVERSION)

$(SCRIPT) $(UPGRADES) &: $(SOURCES)
	$(PYTHON) tools/build.py $(BUILD)

install: install-python

# Byte-compiled here, because the server cannot write there.
.PHONY: install-python
install-python:
	umask 022 && $(MKDIR_P) '$(packagedir)'
	$(INSTALL_DATA) python/pg_llm/*.py '$(packagedir)/'
	umask 022 && $(PYTHON) -m compileall -q --invalidation-mode unchecked-hash -s '$(DESTDIR)' '$(packagedir)'

uninstall: uninstall-python

.PHONY: uninstall-python
uninstall-python:
	rm -rf '$(packagedir)'
	-rmdir '$(dir $(packagedir))'
else
# A bare machine: the commands below bring a PostgreSQL of their own.
.PHONY: all install uninstall clean
all install uninstall clean:
	@echo "$(PG_CONFIG) names no PGXS: install postgresql-server-dev-17 or -18, or set PG_CONFIG." >&2; exit 1
endif

# Each of these prepares what it needs: see docs/operations.md.

.PHONY: demo test lint bench reference dist

demo:
	tools/run-in-image python -m demo $(ARGS)

test:
	tools/run-in-image tools/test $(ARGS)

lint:
	tools/run-in-image tools/lint

bench:
	tools/run-in-image python -m bench $(ARGS)

reference:
	mkdir -p $(BUILD)
	tools/run-in-image python -m tools.reference > $(BUILD)/reference.md
	mv $(BUILD)/reference.md docs/reference.md

dist:
	mkdir -p $(BUILD)
	git archive --format=zip --prefix=pg_llm-$(EXTVERSION)/ -o $(BUILD)/pg_llm-$(EXTVERSION).zip HEAD
