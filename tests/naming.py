"""Names of parametrised cases."""

import re


def named(value):
    """Say a value without addresses in memory, so that processes which share the tests out agree on their names."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
