"""The command line: the same steps as in Python, on files and importable models.

A model or data set is named as `module:callable`, which is imported and called without arguments; the working
directory is on the path. Nothing heavy is imported before a command runs.
"""

from koopman_interp.cli.app import main as main
