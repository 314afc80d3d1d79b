"""Which system a record is about, and with what it was measured."""

import platform
from datetime import date
from importlib import metadata

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "mteb",
    "bm25s",
    "scikit-learn",
    "pytrec_eval-terrier",
    "numpy",
)


def installed_versions() -> dict[str, str]:
    """Of Python and the packages that decide a score; those that are absent are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def provenance(system: str, encoder: str, policy: str, model_fingerprint: str | None = None) -> dict:
    """Fields that every record of a model has.

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
