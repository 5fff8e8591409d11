"""A certificate authority of the relay's own, made anew for each relay."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from pathlib import Path

import trustme


class Certificates:
    """The relay's TLS context, and the file of the authority that clients must trust."""

    def __init__(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        certificate.configure_cert(self.context)
        self._authority = authority.cert_pem.bytes()
        self._folder: Path | None = None

    @property
    def ca_file(self) -> str:
        """The path of the authority's certificate (PEM); the same after each start."""
        if self._folder is None:
            raise RuntimeError(
                "The relay was never started: call start() or use `with`."
            )
        return str(self._folder / "ca.pem")

    def write(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="lettermint-relay-"))
        else:
            self._folder.mkdir(mode=0o700)
        Path(self.ca_file).write_bytes(self._authority)

    def remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
