# requires: llm==0.36
# manners: command no-stream
# mypy: ignore-errors
"""The command `llm`: a model in extra-openai-models.yaml, then `llm -m` and twice `llm -c`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cue import BASE_URL, MANNER, MODEL, TURNS, heard

folder = Path.cwd() / "llm"
folder.mkdir()
entry = {"model_id": "parley", "model_name": MODEL, "api_base": BASE_URL}
(folder / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
command = [str(Path(sys.executable).with_name("llm")), *(["--no-stream"] if MANNER == "no-stream" else [])]
for number, turn in enumerate(TURNS):
    options = ["-c"] if number else ["-m", "parley", "-s", "Be kind."]
    environment = {**os.environ, "LLM_USER_PATH": str(folder)}
    run = subprocess.run([*command, *options, turn], env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)
    heard(run.stdout)
