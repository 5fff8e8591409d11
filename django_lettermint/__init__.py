"""A Django email backend for Lettermint's SMTP relay."""

__version__ = "1.0.0"
