"""Tasks that mteb scores by itself (classification, clustering, pairs, reranking, similarity), for one encoder.

Encoders give vectors of length 1. For a model that does not, mteb's own wrapper keeps the lengths, which classifiers
and clusters notice: there the scores differ a little.
"""

import logging
from datetime import date

from ..encoders.policies import Policy
from ..encoders.protocol import Encoder
from ..tasks.from_mteb import reason
from ..tasks.mteb_names import mteb_tasks
from .ours import EncoderForMteb

logger = logging.getLogger(__name__)

# What the paper prints in Tables 20 and 22, and the cosine's average precision; mteb's main scores there are others.
ALSO = ("cosine_pearson", "cosine_accuracy", "cosine_ap", "ndcg_at_10")


def run_mteb(encoder: Encoder, policy: Policy, names: list[str], system: str | None = None) -> list[dict]:
    """Score an encoder with mteb.

    Args:
        policy: for the documents of retrieval and reranking tasks; one that gives one vector.
        names: of mteb's tasks and benchmarks, or of the paper's tables (`table-18`).
        system: what tables call it; by default the encoder's name and the policy.

    Returns:
        A record of kind "mteb" for each task and split: mteb's main score there (0 to 1), the mean over subsets.

    Raises:
        ValueError: a name is unknown, the policy gives several vectors, or a task fails.
    """
    return run_tasks(encoder, policy, mteb_tasks(names), system)


def run_tasks(encoder: Encoder, policy: Policy, tasks: list, system: str | None = None) -> list[dict]:
    """As `run_mteb`, for task objects."""
    import mteb

    model = EncoderForMteb(encoder, policy)
    records = []
    for task in tasks:
        name = task.metadata.name
        logger.info("%s on mteb's %s", encoder.name, name)
        try:
            (result,) = mteb.evaluate(model, [task], cache=None, co2_tracker=False).task_results
        except Exception as error:  # of the task's own loader or scoring
            raise ValueError(f"mteb task {name!r} failed: {reason(error)}") from error
        records += [_record(encoder, policy, task, split, scores, system) for split, scores in result.scores.items()]
    return records


def _record(encoder: Encoder, policy: Policy, task, split: str, scores: list[dict], system: str | None) -> dict:
    from ..analyses.shared import installed_versions

    about = task.metadata
    others = {name: _mean(scores, name) for name in ALSO if name != about.main_score and name in scores[0]}
    return {
        "kind": "mteb",
        "system": system or f"{encoder.name} / {policy.spec}",
        "encoder": encoder.name,
        "policy": policy.spec,
        "task": about.name,
        "split": split,
        "metric": about.main_score,
        "value": _mean(scores, "main_score"),
        "other_scores": others,
        "group": about.type.lower(),
        "revision": about.dataset.get("revision"),
        "versions": installed_versions(),
        "date": date.today().isoformat(),
        "model_fingerprint": encoder.fingerprint,
    }


def _mean(scores: list[dict], name: str) -> float:
    return float(sum(subset[name] for subset in scores) / len(scores))
