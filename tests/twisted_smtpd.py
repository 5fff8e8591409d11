"""Twisted's SMTP server as a program: `other_servers` starts it and reads what it prints.

It prints a JSON line with its ports, and one for each copy of a mail that it takes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet import defer, protocol, reactor, ssl
from twisted.mail import smtp
from twisted.mail.imap4 import LOGINCredentials, PLAINCredentials
from zope.interface import implementer


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


@implementer(smtp.IMessage)
class Message:
    def __init__(self, who: str) -> None:
        self.who = who
        self.lines: list[bytes] = []

    def lineReceived(self, line: bytes) -> None:
        self.lines.append(line)

    def eomReceived(self) -> defer.Deferred[None]:
        say(to=self.who, content=b"\n".join(self.lines).decode())
        return defer.succeed(None)

    def connectionLost(self) -> None:
        pass


@implementer(smtp.IMessageDelivery)
class Delivery:
    def receivedHeader(self, *_: object) -> bytes:
        return b"Received: by Twisted"

    def validateFrom(self, _: object, origin: smtp.Address) -> smtp.Address:
        if str(origin).startswith("banned"):
            raise smtp.SMTPBadSender(origin)
        return origin

    def validateTo(self, user: smtp.User) -> Any:
        if str(user.dest).startswith("nobody"):
            raise smtp.SMTPBadRcpt(user)
        return lambda: Message(str(user.dest))


@implementer(IRealm)
class Realm:
    def requestAvatar(self, *_: object) -> tuple[object, Delivery, object]:
        return smtp.IMessageDelivery, Delivery(), lambda: None


class Factory(protocol.ServerFactory):
    def __init__(self, user: str, token: str, context: ssl.CertificateOptions) -> None:
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        checker.addUser(user.encode(), token.encode())
        self.portal = Portal(Realm(), [checker])
        self.context = context

    def buildProtocol(self, _: object) -> smtp.ESMTP:
        mechanisms = {b"PLAIN": PLAINCredentials, b"LOGIN": LOGINCredentials}
        server = smtp.ESMTP(mechanisms, self.context)
        server.portal = self.portal
        server.host = b"twisted.test"
        return server


def main(user: str, token: str, chain: str) -> None:
    context = ssl.DefaultOpenSSLContextFactory(chain, chain)
    factory = Factory(user, token, context)
    tls = reactor.listenSSL(0, factory, context, interface="127.0.0.1")
    starttls = reactor.listenTCP(0, factory, interface="127.0.0.1")
    say(tls=tls.getHost().port, starttls=starttls.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
