"""Images from disk to device. `create_loader` builds all of it from the options."""

from data.loader import create_loader

__all__ = ["create_loader"]
