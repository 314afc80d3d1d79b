"""Search: from a folder of files to the passages that answer.

`Index` and `Encoder` are imported when they are first used: `from m2bert.search import Index`.
"""

__all__ = ["Encoder", "Index"]


def __getattr__(name: str):
    if name == "Index":
        from .index import Index

        return Index
    if name == "Encoder":
        from .encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
