"""M2-BERT: encoders of long documents without attention."""

from importlib.metadata import version

__version__ = version("m2bert")
