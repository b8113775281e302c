"""Runs benchmarks: python -m bench [NAME…] [--quick]. Without names all of them."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from time import monotonic

from bench import support
from bench.support import conditions, server

NAMES = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> None:
    """Run the benchmarks named on the command line, all on one server."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no large tables: numbers to look at, not to quote")
    parser.add_argument("--large", action="store_true", help="sizes that take minutes and gigabytes, too")
    arguments = parser.parse_args()
    support.large = arguments.large
    start = monotonic()
    with server() as cluster:
        print(conditions(cluster, quick=arguments.quick))
        for name in arguments.names or NAMES:
            import_module(f"bench.bench_{name}").run(cluster, quick=arguments.quick)
    print(f"\n{monotonic() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
