"""One ssl.SSLContext of an Access, without a key or a certificate ever on a disk."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from pynet.drivers.credentials import CredentialsError

if TYPE_CHECKING:
    from pynet.drivers.credentials import Access


def tls_context(access: Access) -> ssl.SSLContext | None:
    """The context for connections to ``access.server``; None for plain http. Raises CredentialsError."""
    if not access.server.startswith("https:"):
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Python >=3.13 can hold a CA to RFC 5280 by the letter, which Go's clients do not: many a cluster's CA would fail.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if access.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif access.ca:
            context.load_verify_locations(cadata=access.ca)
        else:
            context.load_default_certs()  # the system's; they take a while to read
        if access.certificate:
            _load_pair(context, access)
    except ssl.SSLError as error:
        raise CredentialsError(f"{access.server}: CA, client certificate or key: {error.reason or 'not PEM'}") from None
    return context


def _load_pair(context: ssl.SSLContext, access: Access) -> None:
    """Python takes a client certificate by file name only: a file in memory, which no crash leaves behind."""
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "w", encoding="ascii") as file:
            file.write(f"{access.certificate}\n{access.key}\n")
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: "")
    except UnicodeEncodeError:
        raise CredentialsError(f"{access.server}: the client certificate or key is not PEM") from None
    finally:
        os.close(descriptor)
