"""The certificate of a relay, and the authority that clients must trust for it."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from pathlib import Path

import trustme


class Certificates:
    """The relay's TLS context, and the folder with the files behind it.

    Without `folder`, they are in a temporary folder, which `remove()` deletes. With it, they
    are kept, so that clients still trust its `ca.pem` after a restart.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        # The authority's own key is not kept: it signs nothing else.
        self._files = {
            "ca.pem": authority.cert_pem.bytes(),
            "server.pem": leaf.private_key_and_cert_chain_pem.bytes(),
        }
        self._folder = Path(folder) if folder else None
        self._temporary = not folder

    @property
    def ca_file(self) -> str:
        """The path of the authority's certificate (PEM); the same after each start."""
        if self._folder is None:
            raise RuntimeError(
                "The relay was never started: call start() or use `with`."
            )
        return str(self._folder / "ca.pem")

    def write(self) -> None:
        """Write the files that are not there, and load them."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="lettermint-relay-"))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = {self._folder / name: octets for name, octets in self._files.items()}
        if not all(path.exists() for path in paths):
            for path, octets in paths.items():
                path.touch(mode=0o600)
                path.write_bytes(octets)
        self.context.load_cert_chain(self._folder / "server.pem")

    def remove(self) -> None:
        """Remove a temporary folder."""
        if self._temporary and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
