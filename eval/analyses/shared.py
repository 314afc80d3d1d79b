"""What the records of analyses share: the systems they are about, their data, and means of groups of queries."""

import platform
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from typing import NamedTuple

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
    """Yield every encoder under every policy; only one encoder is in memory at a time.

    Args:
        encoders: model folders, Hub ids or mteb:NAME.
        policies: as `parse_policy` reads them.
        several: whether a document may have several vectors.

    Raises:
        ValueError: see `check_systems`, at once; or, later, an encoder that cannot be loaded.
    """
    encoders = list(dict.fromkeys(encoders))
    parsed = check_systems(encoders, policies, several)

    def systems() -> Iterator[AnalysedSystem]:
        for name, label in labels(encoders).items():
            encoder = load_encoder(name)
            for policy in parsed:
                about = provenance(f"{label} / {policy.spec}", name, policy.spec, encoder.fingerprint)
                yield AnalysedSystem(encoder, policy, about)

    return systems()


def check_systems(encoders: list[str], policies: list[str], several: bool = True) -> list[Policy]:
    """Return the policies, each once; see `load_systems`.

    Raises:
        ValueError: an unknown policy, one with several vectors where they are of no use, or an encoder that is a
            lexical baseline or no folder.
    """
    parsed = [parse_policy(policy) for policy in dict.fromkeys(policies)]
    for policy in parsed:
        if policy.several and not several:
            raise ValueError(f"policy {policy.spec!r} gives a text several vectors; use truncate or chunk-average")
    for name in encoders:
        if not is_dense(name):
            raise ValueError(f"encoder {name!r} gives no vectors that this analysis can use; name a model folder")
        check_system(name, encoders)
    return parsed


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
        "versions": installed_versions(),
        "date": date.today().isoformat(),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a score, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def origin(task: RetrievalTask) -> dict:
    """Return the fields that say which data a record is about."""
    return {
        "task": task.name,
        "split": task.split,
        "source": task.source,
        "revision": task.revision,
        "data_fingerprint": task.fingerprint,
    }


def summarise(scores: list[float]) -> dict:
    """Return {"queries", "ndcg_at_10", "interval_95"} of a group of queries with these scores from 0 to 1.

    No queries have no mean, and one query has no interval: both are None then.
    """
    return {
        "queries": len(scores),
        "ndcg_at_10": sum(scores) / len(scores) if scores else None,
        "interval_95": list(mean_interval(scores)) if len(scores) > 1 else None,
    }
