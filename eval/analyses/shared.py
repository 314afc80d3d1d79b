"""What the records of analyses share: the systems they are about, their data, and means of groups of queries."""

import platform
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

from m2bert.records import installed_versions

from ..config import check_system, is_dense, labels, load_encoder
from ..encoders.policies import Policy, parse_policy
from ..encoders.protocol import Encoder
from ..statistics import mean_interval
from ..tasks.schema import RetrievalTask

PACKAGES = (
    "torch", "transformers", "sentence-transformers", "mteb", "bm25s", "scikit-learn", "pytrec_eval-terrier", "numpy",
)  # fmt: skip


class AnalysedSystem(NamedTuple):
    """An encoder under a policy, and the fields of a record that say so (see `provenance`)."""

    encoder: Encoder
    policy: Policy
    about: dict


def load_systems(encoders: list[str], policies: list[str], several: bool = True) -> Iterator[AnalysedSystem]:
    """Check all names at once; yield every encoder under every policy, with one encoder in memory at a time.

    Args:
        encoders: model folders, Hub ids or mteb:NAME.
        policies: as `parse_policy` reads them.
        several: whether a document may have several vectors.
    """
    parsed = [parse_policy(policy) for policy in dict.fromkeys(policies)]
    if not several:
        parsed = [*map(one_vector, parsed)]
    for name in encoders:
        if not is_dense(name):
            raise ValueError(f"encoder {name!r} gives no vectors that this analysis can use; name a model folder")
        check_system(name, encoders)
    return _load(labels(list(dict.fromkeys(encoders))), parsed)


def one_vector(policy: Policy) -> Policy:
    """Return the policy, if it gives a text one vector."""
    if policy.several:
        raise ValueError(f"policy {policy.spec!r} gives a text several vectors; use truncate or chunk-average")
    return policy


def _load(named: dict[str, str], policies: list[Policy]) -> Iterator[AnalysedSystem]:
    for name, label in named.items():
        encoder = load_encoder(name)
        for policy in policies:
            about = provenance(f"{label} / {policy.spec}", name, policy.spec, encoder.fingerprint)
            yield AnalysedSystem(encoder, policy, about)


def provenance(system: str, encoder: str, policy: str, model_fingerprint: str | None = None) -> dict:
    """Return the fields that every record of a model has.

    Args:
        system: what tables call it, as "NAME / truncate".
        encoder: what the user wrote: a folder, an id, bm25, mteb:NAME.
        policy: canonical text of the policy, "whole" for BM25.
    """
    return {
        "system": system,
        "encoder": encoder,
        "policy": policy,
        "model_fingerprint": model_fingerprint,
        "versions": decisive_versions(),
        "date": date.today().isoformat(),
    }


def decisive_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a score."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)


def origin(task: RetrievalTask) -> dict:
    """Return the fields that say which data a record is about."""
    about = {"task": task.name, "split": task.split, "source": task.source, "revision": task.revision}
    return {**about, "data_fingerprint": task.fingerprint}


def summarize(scores: list[float]) -> dict:
    """Return {"queries", "ndcg_at_10", "interval_95"} of a group of queries with these scores from 0 to 1.

    No queries have no mean, and one query has no interval: both are None then.
    """
    return {
        "queries": len(scores),
        "ndcg_at_10": sum(scores) / len(scores) if scores else None,
        "interval_95": list(mean_interval(scores)) if len(scores) > 1 else None,
    }
