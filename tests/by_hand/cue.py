"""What a client's script is told, and how it tells what it heard. The scripts import it in their own environments."""

import json
import os

BASE_URL = os.environ["PARLEY_BASE_URL"]
MODEL = os.environ["PARLEY_MODEL"]
TURNS: list[str] = json.loads(os.environ["PARLEY_TURNS"])
MANNER = os.environ["PARLEY_MANNER"]
KEY = "none"


def heard(text: str, **more: object) -> None:
    """One line of JSON per turn."""
    print(json.dumps({"text": text, **more}), flush=True)
