"""The fuzz command: `python -m tests.fuzz [TARGET ...] --inputs N`; exits with 1 if anything was found."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from hashlib import sha256

from tests.fuzz.engine import CORPUS, Found, Run, corpus, distilled, run
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

MOST_KEPT = 40  # files of a target


def main(arguments: Sequence[str]) -> int:
    """Run the targets one after the other; each stops at its first finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--inputs", type=int, default=10_000, help="for each target (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="at most, for each target (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed and corpus give the same inputs")
    parser.add_argument("--keep", action="store_true", help="put what reaches new branches into the corpus")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.target) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    findings = 0
    for name in asked.target or TARGETS:
        target = TARGETS[name]
        done = run(target, inputs=asked.inputs, seconds=asked.minutes * 60, seed=asked.seed)
        _tell(target, done)
        if done.found:
            findings += 1
            keep_finding(target, done.found)
        elif asked.keep:
            _keep(target, done)
    return 1 if findings else 0


def _tell(target: Target, done: Run) -> None:
    rate = done.inputs / max(done.seconds, 1e-9)
    print(
        f"{target.name:14} {done.inputs:>10,} inputs {done.seconds:>8.1f} s {rate:>8,.0f}/s "
        f"{len(done.branches):>5} branches {len(done.pool):>4} kept  {'FOUND' if done.found else 'nothing found'}",
        flush=True,
    )


def keep_finding(target: Target, found: Found) -> None:
    """Put a shrunk input into the corpus and tell of it."""
    (CORPUS / target.name).mkdir(parents=True, exist_ok=True)
    path = CORPUS / target.name / f"found-{_name(found.data)}"
    path.write_bytes(found.data)
    traceback.print_exception(found.fault, limit=-4)
    print(f"{path}: {found.data[:300]!r}", flush=True)


def _keep(target: Target, done: Run) -> None:
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    old = corpus(target)
    named = [path for path in old if not path.name.startswith("branch-")]  # put there by hand, or once a finding
    chosen = distilled(target, [path.read_bytes() for path in old] + done.pool, MOST_KEPT)
    for path in set(old) - set(named):
        path.unlink()
    taken = {path.read_bytes() for path in named}
    for data in set(chosen) - taken:
        (folder / f"branch-{_name(data)}").write_bytes(data)


def _name(data: bytes) -> str:
    return sha256(data).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
