"""What a client's AUTH exchange says."""

from __future__ import annotations

import base64
import hmac

from tests.fault_ledger import Login

#: What the server asks, for each mechanism (RFC 4616, RFC 2195).
CHALLENGES = {
    "PLAIN": (b"",),
    "LOGIN": (b"Username:", b"Password:"),
    "CRAM-MD5": (b"<1896.697170952@fault.test>",),
}


def judge(mechanism: str, replies: list[bytes], user: str, token: str) -> Login:
    """Return who tried to log in, and whether user and token were right."""
    try:
        parts = [base64.b64decode(reply, validate=True) for reply in replies]
    except ValueError:
        return Login(mechanism, "", ok=False)
    name, expected = b"", token.encode()
    if mechanism == "PLAIN":
        name, _, secret = parts[0].partition(b"\0")[2].partition(b"\0")
    elif mechanism == "CRAM-MD5":
        name, _, secret = parts[0].partition(b" ")
        expected = (
            hmac.new(expected, CHALLENGES[mechanism][0], "md5").hexdigest().encode()
        )
    else:
        name, secret = parts
    return Login(
        mechanism, name.decode("latin-1"), name == user.encode() and secret == expected
    )
