"""The benchmark suite: `python -m tests.bench --help`; README.md here tells what is measured and how to read it."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.parts import CONNECTIONS, PARTS, Bench
from tests.bench.runs import Runs
from tests.bench.servers import HERE, OTHERS, is_installed, stage
from tests.bench.tables import bars, tables


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print tables as they are complete, and the bars at the end."""
    arguments = _parser().parse_args(argv)
    if arguments.show:
        rows = [json.loads(line) for path in arguments.show for line in path.read_text(encoding="utf-8").splitlines()]
        print(*(tables(rows, name) for name in arguments.only), bars(rows), sep="\n")
        return
    began = time.monotonic()
    others = [name for name in arguments.others if is_installed(name)]
    with ExitStack() as open_now:
        folder = Path(open_now.enter_context(TemporaryDirectory(prefix="parley-bench-")))
        out = open_now.enter_context((arguments.out or folder / "rows.jsonl").open("w", encoding="utf-8"))
        scene = open_now.enter_context(stage(folder, built("vendor", folder)))
        runs = Runs(scene, built("load", folder), out, arguments.patience)
        bench = Bench(scene, runs, arguments.rounds, others, arguments.parked, arguments.connections)
        for name in arguments.only:
            PARTS[name](bench)
            print(tables(runs.rows, name), flush=True)
        for name in sorted({*OTHERS} - {*others}):
            print(f"{name}: skipped, {'not installed' if name in arguments.others else 'not asked for'}")
        print(bars(runs.rows))
        print(f"\n{time.monotonic() - began:.0f} s; ~ marks what others on this machine disturbed in every run")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", type=_names(PARTS), default=list(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--with", type=_names(OTHERS), default=list(OTHERS), dest="others", metavar="NAMES",
                        help=f"of {','.join(OTHERS)}, or none")  # fmt: skip
    parser.add_argument("--connections", type=_numbers, default=CONNECTIONS, metavar="COUNTS", help="of plain turns")
    parser.add_argument("--parked", type=_numbers, default=[1000, 1_000_000], metavar="COUNTS")
    parser.add_argument("--patience", type=float, default=300, metavar="S", help="for repeating disturbed runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every run as a line of JSON")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="FILE", help="measure nothing: the tables of such files"
    )
    return parser


def _names(known: Collection[str]) -> Callable[[str], Sequence[str]]:
    def names(text: str) -> Sequence[str]:
        asked = [] if text == "none" else text.split(",")
        if strange := {*asked} - {*known}:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(strange))}: choose from {', '.join(known)}")
        return asked

    return names


def _numbers(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


def built(name: str, folder: Path) -> Path:
    """One of the two programs in C, compiled."""
    program = folder / name
    subprocess.run(["gcc", "-O2", "-o", str(program), str(HERE / f"{name}.c")], check=True)
    return program


if __name__ == "__main__":
    main()
