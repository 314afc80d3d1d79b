"""Which system a record is about, and with what it was measured."""

from datetime import date

from ..records import installed_versions


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
