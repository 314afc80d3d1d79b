"""Run every system of a configuration on every task: one record each, ready for JSON."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

from .config import EncoderSettings
from .encoders.cache import VectorStore
from .encoders.model_files import model_files
from .encoders.policies import Policy
from .encoders.processes import several
from .encoders.protocol import Encoder
from .fusion import choose_weight, reciprocal_rank_fusion, weighted_fusion
from .outcomes import Outcome, run_tfidf, score_run
from .plan import LoadedTask, Plan
from .rankers import DenseRanker, Run
from .records import add_lengths, retrieval_record
from .systems import MTEB_PREFIX, expanded, is_dense, load_encoder
from .tasks.schema import RetrievalTask

logger = logging.getLogger(__name__)


def evaluate(plan: Plan, store: VectorStore) -> tuple[list[dict], list[str]]:
    """Score all systems on all tasks.

    An encoder or a policy that fails does not take the others' results with it. Among several processes an encoder
    that fails ends the run, since the others would wait for this one; their vectors are kept.

    Returns:
        The records, and one line for each encoder or policy that failed.

    Raises:
        ValueError: the only encoder fails.
    """
    evaluation = Evaluation(plan, store)
    encoders = plan.config.encoders
    records: list[dict] = []
    for encoder in last_if(encoders, "tfidf-rp"):  # plain tfidf-rp needs the widths of the others
        before = len(records)
        try:
            for record in evaluation.records_of(encoder, records):
                records.append(record)
        except (ValueError, OSError, ImportError, RuntimeError) as error:  # RuntimeError: torch's, out of memory too
            if several():
                raise
            reason = " ".join(str(error).split())
            if len(encoders) == 1 and not records:
                raise ValueError(reason) from error
            result = "failed and is left out" if len(records) == before else "failed, and the rest of it is left out"
            evaluation.left_out(f"encoder {encoder.model!r} {result}: {reason}")
    if not records:
        nothing = "no task here is ranked, and mteb's other tasks need a model that gives vectors; add one"
        raise ValueError("; ".join(evaluation.failures) or nothing)
    return records, evaluation.failures


def last_if(encoders: tuple[EncoderSettings, ...], model: str) -> list[EncoderSettings]:
    """The encoders without repetition, those called `model` at the end."""
    return sorted(dict.fromkeys(encoders), key=lambda encoder: encoder.model == model)


class Evaluation:
    """A run under way: what its systems share, and which of them failed."""

    def __init__(self, plan: Plan, store: VectorStore):
        self.plan = plan
        self.store = store
        self.failures: list[str] = []

    def left_out(self, failure: str) -> None:
        """Take note of what failed while the others go on."""
        self.failures.append(failure)
        logger.error(failure)

    def records_of(self, settings: EncoderSettings, earlier: list[dict]) -> Iterator[dict]:
        """All records of one encoder, one by one. `earlier` tells plain `tfidf-rp` the widths of the models."""
        if is_dense(settings.model):
            yield from self.dense(settings)
            return
        names = [settings.model]
        if settings.model == "tfidf-rp":
            widths = sorted({record["dimensions"] for record in earlier if record.get("dimensions")})
            if not widths:
                raise ValueError("no encoder beside it gave vectors whose width it could take; write tfidf-rp:256")
            named = {record["encoder"] for record in earlier}
            names = [name for name in (f"tfidf-rp:{width}" for width in widths) if name not in named]
        for loaded in self.plan.tasks:
            for name in names:
                yield self.lexical(settings.model_copy(update={"model": name}), loaded, name)

    def lexical(self, settings: EncoderSettings, loaded: LoadedTask, name: str) -> dict:
        """The record of BM25 or of a projection of TF-IDF."""
        logger.info("%s on %s", name, loaded.task.name)
        start = time.perf_counter()
        details = {"name": name, "policy": "whole", "hybrid": None, "vectors": "none", "seen_share": 1.0}
        if name == "bm25":
            outcome = score_run(loaded.bm25, loaded.task)
        else:
            outcome = run_tfidf(int(name.removeprefix("tfidf-rp:")), loaded.task)
            details["vectors"] = "one"
        outcome = replace(outcome, details=details | outcome.details)
        return retrieval_record(name, settings, loaded.settings, loaded.task, outcome, time.perf_counter() - start)

    def dense(self, settings: EncoderSettings) -> Iterator[dict]:
        """Every policy and hybrid of a model on every task."""
        ranker = self.searcher(settings.model)
        if ranker is not None:
            lexical = {"vectors": "none", "claim": "untrained"}
            details = {"policy": "whole", **(lexical if ranker.is_lexical else {"vectors": "several"})}
            for loaded in self.plan.tasks:
                yield from self.measured(settings, loaded, None, ranker, details)
            return
        encoder = load_encoder(settings.model)
        policies = self.usable(settings, encoder)
        about = {
            "dimensions": encoder.dimensions,
            "max_tokens": encoder.max_tokens,
            "model_fingerprint": encoder.fingerprint,
            "model_files": model_files(expanded(settings.model)),
            "device": getattr(encoder, "device", None),
            "dtype": getattr(encoder, "dtype", None),
        }
        for loaded in self.plan.tasks:
            lengths = self.answer_tokens(encoder, loaded.task)
            for policy in policies:
                details = about | {"policy": policy.spec, "vectors": "several" if policy.several else "one"}
                ranker = DenseRanker(encoder, policy, self.store)
                for record in self.measured(settings, loaded, policy, ranker, details):
                    if lengths:
                        add_lengths(record, self.plan.systems[settings].name, lengths)
                    yield record
        if self.plan.mteb_scored:
            yield from self.scored_by_mteb(settings, encoder, policies)

    def usable(self, settings: EncoderSettings, encoder: Encoder) -> list[Policy]:
        """The policies that work with the encoder: said of all of them before the first takes its time.

        Raises:
            ValueError: none does.
        """
        usable, refused = [], []
        for policy in self.plan.systems[settings].policies:
            try:
                policy.check(encoder)
                usable.append(policy)
            except ValueError as error:
                refused.append(str(error))
        if not usable:
            raise ValueError("; ".join(refused))
        for reason in refused:
            self.left_out(f"encoder {settings.model!r} is left out under one policy: {reason}")
        return usable

    def scored_by_mteb(self, settings: EncoderSettings, encoder: Encoder, policies: list[Policy]) -> Iterator[dict]:
        """Records of the tasks that are no retrieval, under the policies that give a text one vector."""
        from .mteb_export import run_tasks

        for policy in policies:
            if policy.several:
                message = "policy %s gives several vectors; mteb's own tasks take one, so it is left out"
                logger.warning(message, policy.spec)
                continue
            system = f"{self.plan.systems[settings].name} / {policy.spec}"
            yield from run_tasks(encoder, policy, self.plan.mteb_scored, system)

    @staticmethod
    def searcher(model: str):
        """A model of mteb that ranks by itself, or None."""
        if not model.startswith(MTEB_PREFIX):
            return None
        from .encoders.mteb_model import MtebRanker, load_mteb_model

        loaded = load_mteb_model(model.removeprefix(MTEB_PREFIX))
        return loaded if isinstance(loaded, MtebRanker) else None

    @staticmethod
    def answer_tokens(encoder: Encoder, task: RetrievalTask) -> dict[str, int] | None:
        """{qid: tokens of its longest answer} by the encoder's own tokenizer; None where it does not show it."""
        if not hasattr(encoder, "count_tokens"):
            return None
        answers = sorted({pid for judged in task.qrels.values() for pid, grade in judged.items() if grade})
        counts = dict(
            zip(answers, encoder.count_tokens([task.documents[pid] for pid in answers], "document"), strict=True)
        )
        return {
            qid: int(max(counts[pid] for pid, grade in judged.items() if grade)) for qid, judged in task.qrels.items()
        }

    def measured(
        self, settings: EncoderSettings, loaded: LoadedTask, policy: Policy | None, ranker, details: dict
    ) -> Iterator[dict]:
        """The record of a ranker alone, then of its hybrids with BM25."""
        name = self.plan.systems[settings].name
        system = f"{name} / {policy.spec}" if policy else name
        logger.info("%s on %s", system, loaded.task.name)
        start = time.perf_counter()
        run = ranker.rank(loaded.task)
        details = details | {"name": name, **getattr(ranker, "report", {}), "hybrid": None}
        seconds = time.perf_counter() - start
        yield self.record(system, settings, loaded, score_run(run, loaded.task, details), seconds)
        for method in dict.fromkeys(self.plan.config.hybrids):
            start = time.perf_counter()
            combined, how = self.hybrid(method, loaded, ranker, run)
            label = f"{method}:{how['depth']}" if "depth" in how else method
            outcome = score_run(combined, loaded.task, details | {"hybrid": {"with": "bm25", "method": method, **how}})
            seconds = time.perf_counter() - start
            yield self.record(f"{system} + bm25 ({label})", settings, loaded, outcome, seconds)

    def record(
        self, system: str, settings: EncoderSettings, loaded: LoadedTask, outcome: Outcome, seconds: float
    ) -> dict:
        """A record, with the overlap of the model's training data."""
        record = retrieval_record(system, settings, loaded.settings, loaded.task, outcome, seconds)
        keys = [(loaded.task.fingerprint, training) for training in settings.trained_on]
        record["overlap"] = [overlap for key in keys for overlap in self.plan.overlaps.get(key, [])] or None
        return record

    def hybrid(self, method: str, loaded: LoadedTask, ranker, run: Run) -> tuple[Run, dict]:
        """The ranking of a hybrid with BM25, and the settings that the record keeps."""
        if method == "rerank":
            depth = self.plan.config.rerank_depth
            return ranker.rerank(loaded.task, loaded.bm25, depth), {"depth": depth}
        if method == "rrf":
            return reciprocal_rank_fusion([loaded.bm25, run]), {}
        development = ranker.rank(loaded.development)
        weight, score = choose_weight(development, loaded.development_bm25, loaded.development.qrels)
        logger.info("weight %.2f of the model beside BM25: nDCG@10 %.4f on development data", weight, score)
        how = {
            "weight": weight,
            "development_split": loaded.development.split,
            "development_ndcg_at_10": score,
        }
        return weighted_fusion(run, loaded.bm25, weight), how
