"""A Django email backend for Lettermint's SMTP relay."""

__version__ = "0.1.0"
