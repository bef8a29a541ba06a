"""Real clients against a live Parley: `python -m tests.by_hand`, run by hand and never by pytest."""
