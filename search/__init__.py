"""Search: from a folder of files to the passages that answer."""

from .encoder import Encoder
from .index import Index

__all__ = ["Encoder", "Index"]
