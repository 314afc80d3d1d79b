"""The systems that `m2bert eval` knows by name: lexical baselines, models of mteb, sentence-transformers models."""

import os
import re
from pathlib import Path

from m2bert.terminal import nearest

from .encoders.protocol import Encoder

BASELINES = ("bm25", "tfidf-rp")
MTEB_PREFIX = "mteb:"


def is_dense(system: str) -> bool:
    """Return whether the name stands for a model rather than for a lexical baseline."""
    return system != "bm25" and not re.fullmatch("tfidf-rp(:.*)?", system)


def check_system(system: str, others: list[str]) -> None:
    """Refuse a name that cannot work, before anything slow begins.

    Args:
        others: all systems of the run; plain `tfidf-rp` takes its width from a model among them.

    Raises:
        ValueError: a path that is no folder, a misspelt baseline, a tfidf-rp without a width to take.
    """
    if not system.removeprefix(MTEB_PREFIX).strip():
        raise ValueError(f"encoder {system!r} names nothing; give a model folder, a Hub id, bm25 or tfidf-rp:256")
    if system == "tfidf-rp" and not any(is_dense(other) for other in others):
        raise ValueError("encoder 'tfidf-rp' takes its width from a dense encoder; add one, or write tfidf-rp:256")
    if system.startswith("tfidf-rp:") and not re.fullmatch("tfidf-rp:[1-9][0-9]*", system):
        raise ValueError(f"encoder {system!r} has no positive number as width; write tfidf-rp:256")
    if not is_dense(system) or system.startswith(MTEB_PREFIX) or Path(expanded(system)).is_dir():
        return
    meant = nearest(system.lower(), BASELINES)
    if "/" not in system and meant:
        raise ValueError(f"encoder {system!r} is unknown{meant}")
    if "/" not in system or looks_like_a_path(expanded(system)):
        raise ValueError(
            f"encoder {system!r} is no folder; give a model folder, a Hub id as org/name, bm25 or tfidf-rp:256"
        )


def expanded(system: str) -> str:
    """Fill in `~` and environment variables, so that a shared configuration need not hold one machine's paths.

    Raises:
        ValueError: a variable is not set.
    """
    path = os.path.expanduser(os.path.expandvars(system))
    if "$" in path:
        raise ValueError(f"encoder {system!r} names an environment variable that is not set; export it first")
    return path


def looks_like_a_path(system: str) -> bool:
    """Return whether this is a path: a Hub id has one slash at most and begins with a letter or a digit."""
    return system.startswith((".", "/", "~")) or system.count("/") > 1


def load_encoder(system: str) -> Encoder:
    """Load the encoder of a name: `mteb:NAME`, a model folder, or a Hub id (`org/name` or `org/name@commit`).

    Raises:
        ValueError: it cannot be loaded; or it ranks by itself (mteb's ColBERT and BM25) and so has no vectors to give.
    """
    if not system.startswith(MTEB_PREFIX):
        from .encoders.sentence_transformer import SentenceTransformerEncoder

        return SentenceTransformerEncoder(expanded(system))
    from .encoders.mteb_model import MtebEncoder, load_mteb_model

    model = load_mteb_model(system.removeprefix(MTEB_PREFIX))
    if not isinstance(model, MtebEncoder):
        raise ValueError(f"encoder {system!r} searches by itself and gives no vectors; only `m2bert eval` can use it")
    return model


def labels(systems: list[str]) -> dict[str, str]:
    """Return {system: what tables call it}: its short name, or all of its name where another has the same short one."""
    short = {system: short_name(system) for system in systems}
    return {system: system if list(short.values()).count(name) > 1 else name for system, name in short.items()}


def short_name(system: str) -> str:
    """Return the last part of a path or id, the last two where it is no more than "model"."""
    name = system.removeprefix(MTEB_PREFIX)
    if name == system and is_dense(system) and Path(expanded(system)).is_dir():
        name = os.path.abspath(expanded(system))  # "." has a name
    parts = Path(name).parts
    return "/".join(parts[-2:] if parts[-1] == "model" else parts[-1:])
