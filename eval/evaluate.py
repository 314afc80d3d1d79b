"""Run every system of a configuration on every task: one record each, ready for JSON."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from .distractors import add_distractors
from .encoders import Encoder
from .eval_config import EncoderSettings, EvalConfig, TaskSettings, TrainingTask
from .fusion import choose_weight, reciprocal_rank_fusion, weighted_fusion
from .locov1 import RetrievalTask
from .outcomes import Outcome, run_tfidf, score_run
from .policies import Policy, parse_policy
from .rankers import Bm25Ranker, DenseRanker, Run
from .records import add_lengths, retrieval_record
from .systems import MTEB_PREFIX, check_system, is_dense, load_encoder, short_name
from .task_sources import load_tasks
from .vector_store import VectorStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedTask:
    """A task, the one on which a hybrid's weight is chosen (None if no hybrid needs it), and where they come from."""

    settings: TaskSettings
    task: RetrievalTask
    development: RetrievalTask | None

    @cached_property
    def bm25(self) -> Run:
        """BM25's ranking of the task, made once for all systems."""
        return Bm25Ranker().rank(self.task)

    @cached_property
    def development_bm25(self) -> Run:
        """BM25's ranking of the development task."""
        return Bm25Ranker().rank(self.development)


def evaluate(config: EvalConfig, store: VectorStore) -> tuple[list[dict], list[str]]:
    """Score all systems on all tasks.

    An encoder that fails does not take the others' results with it.

    Returns:
        The records, and one line for each encoder that failed.

    Raises:
        ValueError: a name, policy or task is wrong; or the only encoder fails.
    """
    models = [encoder.model for encoder in config.encoders]
    for encoder in config.encoders:
        check_system(encoder.model, models)
    policies = {text: parse_policy(text) for entry in (config, *config.encoders) for text in entry.policies}
    evaluation = Evaluation(config, policies, load_all(config), mteb_scored(config), store)
    records: list[dict] = []
    failures: list[str] = []
    for encoder in last_if(config.encoders, "tfidf-rp"):  # plain tfidf-rp needs the widths of the others
        try:
            records += evaluation.records_of(encoder, records)
        except (ValueError, OSError) as error:
            if len(config.encoders) == 1:
                raise
            failures.append(f"encoder {encoder.model!r} failed and is left out: {' '.join(str(error).split())}")
            logger.error(failures[-1])
    if not records:
        raise ValueError("; ".join(failures))
    return records, failures


def last_if(encoders: tuple[EncoderSettings, ...], model: str) -> list[EncoderSettings]:
    """The encoders without repetition, those called `model` at the end."""
    return sorted(dict.fromkeys(encoders), key=lambda encoder: encoder.model == model)


def load_all(config: EvalConfig) -> list[LoadedTask]:
    """Every task of the configuration, with its development task where a weighted hybrid needs one."""
    loaded = []
    for settings in config.tasks:
        for task in load_split(settings, settings.split):
            development = None
            if "weighted" in config.hybrids:
                name = task.name.split(" ")[0]
                development = load_split(replace(settings, names=(name,)), settings.development_split)[0]
            loaded.append(LoadedTask(settings, task, development))
    return loaded


def mteb_scored(config: EvalConfig) -> list:
    """mteb's task objects that mteb scores by itself: classification, clustering, similarity, ..."""
    names = [name for settings in config.tasks if settings.data == "mteb" for name in settings.names]
    if not names:
        return []
    from .mteb_adapter.names import mteb_tasks, ranked_here

    return [task for task in mteb_tasks(names) if not ranked_here(task)]


def ranked_names(settings: TaskSettings) -> list[str] | None:
    """Names of the tasks that are ranked here; None takes all that the data have."""
    if settings.data != "mteb" or not settings.names:
        return list(settings.names) or None
    from .mteb_adapter.names import mteb_tasks, ranked_here

    return [task.metadata.name for task in mteb_tasks(list(settings.names)) if ranked_here(task)]


def load_split(settings: TaskSettings, split: str) -> list[RetrievalTask]:
    """The tasks of one split, distractors included."""
    names = ranked_names(settings)
    if names == []:
        return []
    tasks = load_tasks(settings.data, names, split, revision=settings.revision, documents=settings.documents)
    if settings.distractors is None:
        return tasks
    distractors = settings.distractors
    return [add_distractors(task, distractors.path, distractors.count, distractors.seed) for task in tasks]


@dataclass
class Evaluation:
    """What the systems of one run share."""

    config: EvalConfig
    policies: dict[str, Policy]
    tasks: list[LoadedTask]
    mteb_scored: list
    store: VectorStore
    overlaps: dict = field(default_factory=dict)

    def records_of(self, settings: EncoderSettings, earlier: list[dict]) -> list[dict]:
        """All records of one encoder. `earlier` tells plain `tfidf-rp` the widths of the models."""
        model = settings.model
        if model == "bm25":
            return [self.lexical(settings, loaded, "bm25") for loaded in self.tasks]
        if model == "tfidf-rp":
            named = {record["encoder"] for record in earlier}
            widths = sorted({record["dimensions"] for record in earlier if record.get("dimensions")})
            names = [name for name in (f"tfidf-rp:{width}" for width in widths) if name not in named]
            return [
                self.lexical(replace(settings, model=name), loaded, name) for loaded in self.tasks for name in names
            ]
        if not is_dense(model):
            return [self.lexical(settings, loaded, model) for loaded in self.tasks]
        return list(self.dense(settings))

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
            for loaded in self.tasks:
                yield from self.measured(settings, loaded, None, ranker, {"policy": "whole", "vectors": "several"})
            return
        encoder = load_encoder(settings.model)
        about = {
            "dimensions": encoder.dimensions,
            "max_tokens": encoder.max_tokens,
            "model_fingerprint": encoder.fingerprint,
            "device": getattr(encoder, "device", None),
            "dtype": getattr(encoder, "dtype", None),
        }
        for loaded in self.tasks:
            lengths = self.answer_tokens(encoder, loaded.task)
            for text in settings.policies or self.config.policies:
                policy = self.policies[text]
                details = about | {"policy": policy.spec, "vectors": "several" if policy.several else "one"}
                ranker = DenseRanker(encoder, policy, self.store)
                for record in self.measured(settings, loaded, policy, ranker, details):
                    if lengths:
                        add_lengths(record, short_name(settings.model), lengths)
                    yield record
        if self.mteb_scored:
            yield from self.scored_by_mteb(settings, encoder)

    def scored_by_mteb(self, settings: EncoderSettings, encoder: Encoder) -> Iterator[dict]:
        """Records of the tasks that are no retrieval, under the policies that give a text one vector."""
        from .mteb_adapter.run import run_tasks

        for text in settings.policies or self.config.policies:
            policy = self.policies[text]
            if policy.several:
                logger.warning("policy %s gives several vectors; mteb's own tasks take one, so it is left out", text)
                continue
            system = f"{settings.name or short_name(settings.model)} / {policy.spec}"
            yield from run_tasks(encoder, policy, self.mteb_scored, system)

    @staticmethod
    def searcher(model: str):
        """A model of mteb that ranks by itself, or None."""
        if not model.startswith(MTEB_PREFIX):
            return None
        from .mteb_adapter.models import MtebRanker, load_mteb_model

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
        name = settings.name or short_name(settings.model)
        system = f"{name} / {policy.spec}" if policy else name
        logger.info("%s on %s", system, loaded.task.name)
        start = time.perf_counter()
        run = ranker.rank(loaded.task)
        details = details | {"name": name, **getattr(ranker, "report", {}), "hybrid": None}
        seconds = time.perf_counter() - start
        yield self.record(system, settings, loaded, score_run(run, loaded.task, details), seconds)
        for method in self.config.hybrids:
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
        trained_on = [training for training in settings.trained_on if isinstance(training, TrainingTask)]
        record["overlap"] = [self.overlap(loaded.task, training) for training in trained_on] or None
        return record

    def overlap(self, task: RetrievalTask, training: TrainingTask) -> dict:
        """What the task shares with a model's training data, found once."""
        from .overlap import find_overlap

        key = (task.fingerprint, training)
        if key not in self.overlaps:
            (train,) = load_tasks(training.data, [training.name], training.split)
            self.overlaps[key] = find_overlap(task, train)
        return self.overlaps[key]

    def hybrid(self, method: str, loaded: LoadedTask, ranker, run: Run) -> tuple[Run, dict]:
        """The ranking of a hybrid with BM25, and the settings that the record keeps."""
        if method == "rerank":
            depth = self.config.rerank_depth
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
