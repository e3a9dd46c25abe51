"""The command line: the same steps as in Python, on files and importable models.

A model or data is named as `module:callable`, which is imported and called without arguments, with the working
directory on the path; by its file or folder; or by its name on the Hub of Hugging Face. Nothing heavy is imported
before a command runs, and what can be checked without it is checked first.
"""

from koopman_interp.cli.app import main as main
