"""What is packed can be unpacked: PGXS, the PGXN archive, META.json."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tools.cluster import ROOT, Cluster, Installation, run

META = json.loads((ROOT / "META.json").read_text())
ARCHIVE = f"pg_llm-{META['version']}"

#: PGXN Meta Spec 1.0.0, "License Strings".
LICENSES = {"agpl_3", "apache_2_0", "artistic_2", "bsd", "gpl_2", "gpl_3", "lgpl_2_1", "lgpl_3_0", "mit", "mozilla_1_1", "postgresql", "unrestricted"}
SEMANTIC_VERSION = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"

JUNK = (
    "build/pg_llm--9.9.9.sql",
    "tools/__pycache__/build.pyc",
    ".venv/bin/python",
    ".mypy_cache/x",
    ".ruff_cache/x",
    ".pytest_cache/x",
    ".hypothesis/x",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of this tree, in which somebody has worked."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name in ("build", "__pycache__") or (path.name.startswith(".") and path.name not in (".ci", ".gitignore", ".gitattributes")):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("junk")
    git = ("git", "-c", "init.defaultBranch=main", "-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgSign=false")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "All")):
        run(*git, *command, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def archive(checkout: Path) -> Path:
    """What `make dist` makes of the checkout."""
    run("make", "-s", "dist", cwd=checkout)
    return checkout / "build" / f"{ARCHIVE}.zip"


@pytest.fixture
def bare(tmp_path: Path) -> Installation:
    """A server's programs without pg_llm."""
    installation = Installation(tmp_path / "postgresql")
    # pgxnclient asks whether it may write here.
    Path(run(installation.pg_config, "--libdir").strip()).mkdir(exist_ok=True)
    return installation


def test_the_archive_holds_the_tree_and_no_junk(archive: Path, checkout: Path) -> None:
    names = {PurePosixPath(name) for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    files = {name.relative_to(ARCHIVE) for name in names}
    tracked = {PurePosixPath(name) for name in run("git", "ls-files", cwd=checkout).splitlines()}
    assert files == tracked
    assert files.isdisjoint(PurePosixPath(name) for name in JUNK)
    assert {str(name) for name in files} >= {
        *("META.json", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "pg_llm.control", "sql/MANIFEST", "tools/build.py", "tests/conftest.py"),
        *(str(path.relative_to(ROOT)) for path in (*ROOT.glob("sql/*/*.sql"), *ROOT.glob("python/pg_llm/*.py"))),
    }


def test_the_archive_is_installed_by_pgxnclient(archive: Path, bare: Installation, tmp_path: Path) -> None:
    # No mirror is asked: nothing listens there.
    options = ("--mirror", "http://127.0.0.1:9", "--unstable", "--nosudo", "--yes", "--make", "make", "--pg_config", bare.pg_config)
    run("pgxn", "install", *options, archive, cwd=tmp_path, HOME=str(tmp_path))
    with Cluster(bare, tmp_path / "cluster") as cluster, cluster.connect() as connection:
        connection.execute("set client_min_messages = warning")
        connection.execute("create extension pg_llm cascade")
        assert connection.execute("select llm.version()").fetchone() == (META["version"],)
        connection.execute("select llm.save_config('k', '1')")
        assert connection.execute("select llm.load_config('k')").fetchone() == (1,)


def test_install_and_uninstall_leave_a_server_as_it_was(checkout: Path, bare: Installation, tmp_path: Path) -> None:
    def files() -> set[str]:
        return {str(path.relative_to(tmp_path)) for path in (tmp_path / "postgresql").rglob("*") if not path.is_dir() or path.is_symlink()}

    before = files()
    make = ("make", "-s", f"PG_CONFIG={bare.pg_config}")
    run(*make, cwd=checkout)
    assert files() == before

    run(*make, "install", cwd=checkout)
    installed = files() - before
    assert {name for name in installed if "pg_llm" not in name} == set()
    expected = {"pg_llm.control", f"pg_llm--{META['version']}.sql", "config.py", f"config.{sys.implementation.cache_tag}.pyc"}
    assert {PurePosixPath(name).name for name in installed} >= expected

    run(*make, "uninstall", cwd=checkout)
    assert files() == before
    assert not (bare.pkglibdir / "pg_llm").exists()


def test_the_meta_data_are_complete() -> None:
    """The required fields of the PGXN Meta Spec 1.0.0."""
    assert META["name"] == "pg_llm"
    assert re.fullmatch(SEMANTIC_VERSION, META["version"])
    assert all(META[field].strip() for field in ("abstract", "maintainer", "generated_by"))
    assert META["license"] in LICENSES
    assert META["meta-spec"]["version"] == "1.0.0"
    assert META["release_status"] in ("stable", "testing", "unstable")
    for provided in META["provides"].values():
        assert re.fullmatch(SEMANTIC_VERSION, provided["version"])
        assert (ROOT / provided["file"]).is_file()
        assert (ROOT / provided["docfile"]).is_file()
    assert all(1 <= len(tag) <= 255 and not re.search(r"[/\\\x00-\x1f]", tag) for tag in META["tags"])


def test_the_meta_data_name_every_required_extension() -> None:
    control = (ROOT / "pg_llm.control").read_text()
    requires = re.search(r"^requires = '(.*)'$", control, re.MULTILINE)
    assert requires
    needed = META["prereqs"]["runtime"]["requires"]
    assert set(requires[1].split(", ")) == set(needed) - {"PostgreSQL"}
    assert all(minimum == 0 or re.fullmatch(SEMANTIC_VERSION, minimum) for minimum in needed.values())
