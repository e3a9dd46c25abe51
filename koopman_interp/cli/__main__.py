"""`python -m koopman_interp.cli`."""

from koopman_interp.cli import main

main()
