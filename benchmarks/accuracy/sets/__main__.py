"""Write one set, or all: `python -m benchmarks.accuracy.sets NAME|all DIRECTORY`."""

import argparse
from pathlib import Path

from benchmarks.accuracy.sets.catalog import SETS
from benchmarks.accuracy.sets.folders import write


def main() -> None:
    """Write the sets that are named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.sets")
    parser.add_argument("name", choices=[*SETS, "all"])
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    for name in SETS if given.name == "all" else [given.name]:
        print(write(SETS[name](), given.directory / name), flush=True)


if __name__ == "__main__":
    main()
