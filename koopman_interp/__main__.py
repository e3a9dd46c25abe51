"""`python -m koopman_interp`, as `torchrun -m koopman_interp` starts it."""

from koopman_interp.cli import main

main()
