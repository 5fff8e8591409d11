"""Certificates that are right, and certificates that are each wrong in one way."""

from __future__ import annotations

import atexit
import datetime
import functools
import ipaddress
import os
import pathlib
import shutil
import ssl
import tempfile
import warnings
from collections.abc import Mapping

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAMES = ("localhost", "127.0.0.1", "127.0.0.2", "127.0.0.3", "::1")

#: Good certificates behind a server that ends at an old protocol version.
OLD_PROTOCOLS: Mapping[str, str] = {"tls1.0": "TLSv1", "tls1.1": "TLSv1_1"}

KINDS = (
    "good",
    "wrong_host",
    "expired",
    "not_yet",
    "untrusted",
    "self_signed",
    *OLD_PROTOCOLS,
)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def ca_file() -> str:
    """Return the path of the trusted CA in PEM, removed when this process ends."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="faultserver-"))
    owner = os.getpid()

    def remove() -> None:
        # A forked child that runs its exit handlers must not take the parent's file away.
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    path = directory / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return str(path)


@functools.cache
def server_context(kind: str) -> ssl.SSLContext:
    """Return a server's TLS context for one of `KINDS`, made once per process."""
    if kind not in KINDS:
        raise ValueError(
            f"certificate {kind!r} is unknown: choose from {', '.join(KINDS)}"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if kind == "self_signed":
        _load_self_signed(context)
    else:
        _issue(kind).configure_cert(context)
    if kind in OLD_PROTOCOLS:
        _end_at(context, OLD_PROTOCOLS[kind])
    return context


def _issue(kind: str) -> trustme.LeafCert:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    if kind == "wrong_host":
        return authority().issue_cert("mail.example.org")
    if kind == "expired":
        return authority().issue_cert(
            *NAMES, not_before=now - 2 * day, not_after=now - day
        )
    if kind == "not_yet":
        return authority().issue_cert(
            *NAMES, not_before=now + day, not_after=now + 2 * day
        )
    if kind == "untrusted":
        return trustme.CA().issue_cert(*NAMES)
    return authority().issue_cert(*NAMES)


def _load_self_signed(context: ssl.SSLContext) -> None:
    # Names and dates are right, so that a client can object to the issuer only.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    subject = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(subject), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    blob = certificate.public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with trustme.Blob(blob).tempfile() as path:
        context.load_cert_chain(path)


def _end_at(context: ssl.SSLContext, version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    # OpenSSL 3 speaks the old versions at security level 0 only.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
