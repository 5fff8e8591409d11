"""manage.py lettermint_relay: Lettermint on your machine."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_lettermint.testing import command


class Command(BaseCommand):
    """Serves a local relay until it is interrupted."""

    help = command.DESCRIPTION
    #: It needs none of the project's settings.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        command.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve; raise CommandError for what cannot be served."""

        def write(text: str) -> None:
            self.stdout.write(text)
            self.stdout.flush()

        try:
            command.serve(argparse.Namespace(**options), write)
        except command.CannotServe as error:
            raise CommandError(f"{error}.") from error
