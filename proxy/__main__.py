"""`python -m proxy` is `parley`."""

from proxy.cli import main

main()
