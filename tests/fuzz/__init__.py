"""Properties that hold for any input, and what looks for inputs that break them: `python -m tests.fuzz`."""
