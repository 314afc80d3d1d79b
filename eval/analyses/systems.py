"""The models of an analysis: each loaded once, under each of its policies."""

from collections.abc import Iterator
from typing import NamedTuple

from ..encoders.policies import Policy, parse_policy
from ..encoders.protocol import Encoder
from ..systems import check_system, is_dense, labels, load_encoder
from .provenance import provenance


class AnalysedSystem(NamedTuple):
    """An encoder under a policy, and the fields of a record that say so (see `provenance`)."""

    encoder: Encoder
    policy: Policy
    about: dict


def load_systems(encoders: list[str], policies: list[str], several: bool = True) -> Iterator[AnalysedSystem]:
    """Every encoder under every policy, encoders one after the other: only one is in memory at a time.

    Args:
        encoders: model folders, Hub ids or mteb:NAME.
        policies: as `parse_policy` reads them.
        several: whether a document may have several vectors.

    Raises:
        ValueError: see `check_systems`; or an encoder that cannot be loaded.
    """
    encoders = list(dict.fromkeys(encoders))
    return _load(encoders, check_systems(encoders, policies, several))


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


def _load(encoders: list[str], policies: list[Policy]) -> Iterator[AnalysedSystem]:
    for name, label in labels(encoders).items():
        encoder = load_encoder(name)
        for policy in policies:
            about = provenance(f"{label} / {policy.spec}", name, policy.spec, encoder.fingerprint)
            yield AnalysedSystem(encoder, policy, about)
