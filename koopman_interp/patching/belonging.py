"""That model, surrogate and edits belong together: what a patch looks at before it writes anything."""

from __future__ import annotations

from collections.abc import Sequence

from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import HostMismatchError
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder


def require_host(host: Host, koopman: KoopmanAutoencoder, check_weights: bool) -> HostFingerprint:
    """Refuse a model that a surrogate was not fitted on.

    Args:
        host: the model.
        koopman: the surrogate.
        check_weights: compare its weights as well.

    Returns:
        The fingerprint of the model.

    Raises:
        HostMismatchError: it is another.
    """
    found = HostFingerprint.of(host)
    koopman.config.host.require(found, "surrogate", ignoring=() if check_weights else ("weights",), host=host)
    return found


def require_own(host: Host, koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], check_weights: bool) -> None:
    """Refuse a model, or edits, that do not belong to a surrogate; see `require_host`.

    Raises:
        InputError: the surrogate moves along an orbit and not through depth.
        HostMismatchError: the model is another, or an edit is another surrogate's.
    """
    koopman.require_depth("A patch")
    found = require_host(host, koopman, check_weights)
    digest = koopman.digest() if edits else ""
    for edit in edits:
        edit.host.require(found, "edit", ignoring=() if check_weights else ("weights",))
        if edit.operator != digest:
            raise HostMismatchError(
                f"The edit {edit.description!r} was made for another surrogate of this host. "
                "Make it anew from this one: the moments are kept with it."
            )
