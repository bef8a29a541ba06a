"""The one test command, `python -m tests`: format, lint, types, tests; it stops at the first that fails."""

import subprocess
import sys
from pathlib import Path

CHECKS = (("ruff", "format", "--check", "."), ("ruff", "check", "."), ("mypy",), ("pytest", "-n", "4"))

for check in CHECKS:
    print("$ python -m", *check, flush=True)
    done = subprocess.run([sys.executable, "-m", *check], cwd=Path(__file__).parent.parent, check=False)
    if done.returncode:
        sys.exit(done.returncode)
