"""Fit, read and edit the Koopman operator of a network's depth, and patch the edit back into the network.

The catalogue of public names stands in `__init__.pyi`; each is imported when it is first used, so that
`koopman-interp --help` loads no framework.
"""

import lazy_loader

__version__ = "0.5.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
