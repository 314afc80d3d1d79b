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
        ValueError: no name, a folder that does not exist, a misspelt baseline, a tfidf-rp without a width.
    """
    path = expanded(system)
    if system == "tfidf-rp" and not any(is_dense(other) for other in others):
        problem = "takes its width from a dense encoder; add one, or write tfidf-rp:256"
    elif system.startswith("tfidf-rp:") and not re.fullmatch("tfidf-rp:[1-9][0-9]*", system):
        problem = "has no positive number as width; write tfidf-rp:256"
    elif not system.removeprefix(MTEB_PREFIX).strip():
        problem = "is empty; give a model folder, a Hub id, bm25 or tfidf-rp:256"
    elif not is_dense(system) or system.startswith(MTEB_PREFIX) or Path(path).is_dir():
        return
    elif "/" not in system and (meant := nearest(system.lower(), BASELINES)):
        problem = f"is unknown{meant}"
    elif "/" not in system or path.startswith((".", "/", "~")) or path.count("/") > 1:  # no Hub id looks like this
        problem = "is no folder; give a model folder, a Hub id as org/name, bm25 or tfidf-rp:256"
    else:
        return
    raise ValueError(f"encoder {system!r} {problem}")


def expanded(system: str) -> str:
    """Fill in `~` and environment variables, so that a shared configuration need not hold one machine's paths.

    Raises:
        ValueError: a variable is not set.
    """
    path = os.path.expanduser(os.path.expandvars(system))
    if "$" in path:
        raise ValueError(f"encoder {system!r} names an environment variable that is not set; export it first")
    return path


def load_encoder(system: str) -> Encoder:
    """Load the encoder of a name: `mteb:NAME`, a model folder, or a Hub id (`org/name` or `org/name@commit`).

    Raises:
        ValueError: it cannot be loaded; or it ranks by itself (mteb's ColBERT and BM25) and so has no vectors to give.
    """
    if not system.startswith(MTEB_PREFIX):
        from .encoders.sentence_transformer import SentenceTransformerEncoder

        return SentenceTransformerEncoder(expanded(system))
    from .from_mteb import MtebEncoder, load_mteb_model

    model = load_mteb_model(system.removeprefix(MTEB_PREFIX))
    if not isinstance(model, MtebEncoder):
        raise ValueError(f"encoder {system!r} searches by itself and gives no vectors; only `m2bert eval` can use it")
    return model


def labels(systems: list[str]) -> dict[str, str]:
    """Return {system: what tables call it}: its short name, or its full name if another has the same short one."""
    short = {system: short_name(system) for system in systems}
    return {system: system if list(short.values()).count(name) > 1 else name for system, name in short.items()}


def short_name(system: str) -> str:
    """Return the last part of a path or id, the last two if it is just "model"."""
    name = system.removeprefix(MTEB_PREFIX)
    if name == system and is_dense(system) and Path(expanded(system)).is_dir():
        name = os.path.abspath(expanded(system))  # "." has a name
    parts = Path(name).parts
    return "/".join(parts[-2:] if parts[-1] == "model" else parts[-1:])
