"""An hour of ordinary trouble before the whole of Parley, in processes of their own: `python -m tests.soak`."""
