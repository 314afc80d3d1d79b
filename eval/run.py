"""Run every system of a configuration on every task, and make a record, ready for JSON, of each pair of them."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from m2bert.terminal import one_line

from .analyses.shared import decisive_versions
from .analyses.texts import by_length
from .config import (
    EncoderSettings,
    EvalConfig,
    TaskSettings,
    TrainingTask,
    check_system,
    expanded,
    is_dense,
    labels,
    load_system,
)
from .encoders.cache import VectorStore
from .encoders.fingerprint import model_files
from .encoders.policies import Policy, parse_policy
from .encoders.protocol import Encoder
from .progress import has_others
from .rankers import DenseRanker
from .records import LoadedTask, retrieval_record, score_tfidf
from .search import Run, choose_weight, reciprocal_rank_fusion, score_metrics, standardized_fusion, weighted_fusion
from .tasks.load import add_distractors, load_tasks
from .tasks.overlap import find_overlap
from .tasks.schema import RetrievalTask

logger = logging.getLogger(__name__)

OnRanking = Callable[[str, RetrievalTask, Run], None]  # takes the name of a system, a task and the ranking


def named_systems(config: EvalConfig) -> dict[EncoderSettings, tuple[str, tuple[Policy, ...]]]:
    """Return each encoder's name and policies. Raises ValueError if two encoders have the same name and policy."""
    models = [settings.model for settings in config.encoders]
    for model in models:
        check_system(model, models)
    default_names = labels(models)
    systems = {}
    owners: dict[tuple[str, Policy], EncoderSettings] = {}
    for settings in dict.fromkeys(config.encoders):
        name = settings.name or default_names[settings.model]
        policies = tuple(dict.fromkeys(map(parse_policy, settings.policies or config.policies)))
        for policy in policies:
            other = owners.setdefault((name, policy), settings)
            if other is not settings:
                both = f"encoders {other.model!r} and {settings.model!r}"
                raise ValueError(f"{both} would both be called '{name} / {policy.spec}'; give one another name")
        systems[settings] = name, policies
    return systems


def load_all(config: EvalConfig, on_failure: Callable[[str], AbstractContextManager]) -> list[LoadedTask]:
    """Load every task of the configuration once, with its development task where a weighted hybrid needs one.

    Args:
        on_failure: makes the context in which the tasks of one data source are loaded. It takes the beginning of the
            message about a failure, and decides whether a failure ends the run.
    """
    loaded: dict[tuple, LoadedTask] = {}
    weighted = "weighted" in config.hybrids
    for settings in config.tasks:
        with on_failure(f"data {settings.data!r} failed"):
            development_tasks = load_split(settings, settings.development_split) if weighted else []
            by_name = {task.name: task for task in development_tasks}
            for task in load_split(settings, settings.split):
                development = by_name.get(task.name)
                if weighted and (development is None or development.split == task.split):
                    raise ValueError(
                        f"development_split={settings.development_split!r} of task {task.name!r} is "
                        f"{'missing' if development is None else 'the split that is scored'}; choose another"
                    )
                loaded.setdefault((task.name, task.split, task.fingerprint), LoadedTask(settings, task, development))
    return list(loaded.values())


def load_split(settings: TaskSettings, split: str) -> list[RetrievalTask]:
    """Load the tasks of one split, distractors included, without those that mteb scores itself."""
    names = list(settings.names) or None  # None stands for all tasks of the data
    if settings.data == "mteb" and names:
        names = [task.metadata.name for task in _mteb_tasks(names, ranked=True)]
        if not names:
            return []
    tasks = load_tasks(settings.data, names, split, revision=settings.revision, documents=settings.documents)
    distractors = settings.distractors
    if distractors is None:
        return tasks
    return [add_distractors(task, distractors.path, distractors.count, distractors.seed) for task in tasks]


def _mteb_tasks(names: list[str], ranked: bool) -> list:
    """Return mteb's task objects of these names: those that this package ranks, or those that mteb scores itself."""
    if not names:
        return []
    from .from_mteb import mteb_tasks, ranked_here

    return [task for task in mteb_tasks(names) if ranked_here(task) == ranked]


class Evaluation:
    """An evaluation of the systems of a configuration on its tasks.

    Making it checks names and policies, then loads every task. `run` loads the models, one by one.

    Args:
        suite: leave out tasks that cannot be loaded, instead of raising the error.
        earlier: records of an interrupted evaluation, which are not made again.

    Attributes:
        systems: {settings of an encoder: its name in tables, and its policies}.
        earlier: {(task, fingerprint of its data, system): record}.
        mteb_scored: mteb's task objects that mteb scores itself: classification, clustering, similarity, ...
        overlaps: {(fingerprint of a task, training task): what they share}.
        failures: one line for each task, encoder or policy that failed.
        on_ranking: called with every ranking.
    """

    def __init__(self, config: EvalConfig, store: VectorStore, suite: bool = False, earlier: list[dict] | None = None):
        self.config, self.store = config, store
        self.on_ranking: OnRanking = lambda system, task, run: None
        self.failures: list[str] = []
        self.tasks: list[LoadedTask] = []
        fields = ("task", "data_fingerprint", "system")
        self.earlier = {tuple(map(record.get, fields)): record for record in earlier or []}
        self.systems = named_systems(config)
        self.tasks = load_all(config, self.skip_failure if suite else nullcontext)
        names = [name for settings in config.tasks if settings.data == "mteb" for name in settings.names]
        self.mteb_scored = _mteb_tasks(names, ranked=False)
        self.overlaps: dict[tuple[str, TrainingTask], list[dict]] = {}
        for source in dict.fromkeys(source for settings in config.encoders for source in settings.trained_on):
            if isinstance(source, TrainingTask):
                training_tasks = load_tasks(source.data, [source.name], source.split)
                for loaded in self.tasks:
                    shared = [find_overlap(loaded.task, training_task) for training_task in training_tasks]
                    self.overlaps[loaded.task.fingerprint, source] = shared

    def run(
        self, on_ranking: OnRanking | None = None, on_record: Callable[[list[dict]], None] | None = None
    ) -> list[dict]:
        """Score all systems on all tasks; return the records.

        A failure of an encoder or a policy on a task leaves all other results in place, and the run continues. With
        several processes a failure ends the run, because the other processes would wait for this one. The vectors that
        were computed are kept.

        Args:
            on_ranking: called with every ranking.
            on_record: called after each new record, with all records so far.

        Raises:
            ValueError: nothing was scored.
        """
        records: list[dict] = []
        self.on_ranking = on_ranking or self.on_ranking
        # Plain tfidf-rp comes last: it needs the widths of the others.
        for settings in sorted(self.systems, key=lambda settings: settings.model == "tfidf-rp"):
            failed = f"encoder {settings.model!r} failed"
            with self.skip_failure(f"{failed}, and it is left out"):
                by_task = self.dense(settings) if is_dense(settings.model) else self.lexical(settings, records)
                for task, task_records in by_task:
                    with self.skip_failure(f"{failed} on task {task!r}, and the rest of it there is left out"):
                        for record in task_records:
                            records.append(record)
                            if on_record:
                                on_record(records)
        if not records:
            no_system = "no task here is ranked, and mteb's other tasks need a model that gives vectors; add one"
            raise ValueError("; ".join(self.failures) or no_system)
        return records

    @contextmanager
    def skip_failure(self, message: str) -> Iterator[None]:
        """Leave the block at an error, and report it as "message: error". With several processes, raise the error."""
        try:
            yield
        except (ValueError, OSError, ImportError, RuntimeError) as error:  # torch raises RuntimeError
            if has_others():
                raise
            self.report_failure(f"{message}: {one_line(error)}")

    def report_failure(self, failure: str) -> None:
        """Add a failure to `failures`, and log it.

        With one system and one task it is not logged: the command ends at once, and prints the failure then.
        """
        self.failures.append(failure)
        if len(self.systems) > 1 or len(self.tasks) != 1:
            logger.error(failure)

    def reusable(self, loaded: LoadedTask, systems: list[str], model_fingerprint: str | None = None) -> list[dict]:
        """Return the `earlier` records of these systems on a task.

        Returns an empty list if one is missing, or was made with another model or other versions of packages.
        """
        task = loaded.task
        records = [self.earlier.get((task.name, task.fingerprint, system), {}) for system in systems]
        current = {"versions": decisive_versions(), "model_fingerprint": model_fingerprint}
        all_current = all(record and {key: record.get(key) for key in current} == current for record in records)
        return records if all_current else []

    def lexical(self, settings: EncoderSettings, others: list[dict]) -> Iterator[tuple[str, Iterator[dict]]]:
        """Yield each task's name and the records of BM25 or TF-IDF on it.

        Plain `tfidf-rp` is run once for each width of the models in the records of `others`.
        """
        names = [settings.model]
        if settings.model == "tfidf-rp":
            widths = sorted({record["dimensions"] for record in others if record.get("dimensions")})
            if not widths:
                self.report_failure("tfidf-rp is left out: no other encoder gave vectors whose width it could take")
            done = {record["encoder"] for record in others}
            names = [name for name in (f"tfidf-rp:{width}" for width in widths) if name not in done]
        for loaded, name in itertools.product(self.tasks, names):
            yield loaded.task.name, self.lexical_records(settings, loaded, name)

    def lexical_records(self, settings: EncoderSettings, loaded: LoadedTask, name: str) -> Iterator[dict]:
        """Yield the record of `bm25` or `tfidf-rp:WIDTH` on a task."""
        if records := self.reusable(loaded, [name]):
            yield from records
            return
        logger.info("%s on %s", name, loaded.task.name)
        start = time.perf_counter()
        details = {"name": name, "policy": "whole", "hybrid": None, "vectors": "none", "seen_share": 1.0}
        run = loaded.bm25 if name == "bm25" else None
        if run is not None:
            self.on_ranking(name, loaded.task, run)
            scores = score_metrics(run, loaded.task.qrels)
        else:
            scores, tfidf_details = score_tfidf(int(name.removeprefix("tfidf-rp:")), loaded.task)
            details |= {"vectors": "one", **tfidf_details}
        seconds = time.perf_counter() - start
        with_width = settings.model_copy(update={"model": name})  # the settings may say plain `tfidf-rp`
        yield retrieval_record(name, with_width, loaded, scores, run, details, seconds)

    def dense(self, settings: EncoderSettings) -> Iterator[tuple[str, Iterator[dict]]]:
        """Yield each task's name and the records of every policy and hybrid of a model on it."""
        name, policies = self.systems[settings]
        encoder = load_system(settings.model)
        if hasattr(encoder, "rank"):  # a model of mteb that searches by itself
            details = {"policy": "whole", "vectors": "several"}
            if encoder.is_lexical:
                details |= {"vectors": "none", "claim": "untrained"}
            for loaded in self.tasks:
                yield loaded.task.name, self.ranker_records(settings, loaded, name, encoder, details)
            return
        problems = {policy: policy.problem(encoder) for policy in policies}
        for policy, problem in problems.items():
            if problem:
                self.report_failure(f"encoder {settings.model!r} is left out under policy {policy.spec!r}: {problem}")
        policies = [policy for policy, problem in problems.items() if not problem]
        model_details = {
            "dimensions": encoder.dimensions,
            "max_tokens": encoder.max_tokens,
            "model_fingerprint": encoder.fingerprint,
            "model_files": model_files(expanded(settings.model)),
            "device": getattr(encoder, "device", None),
            "dtype": getattr(encoder, "dtype", None),
        }
        for loaded in self.tasks:
            yield loaded.task.name, self.dense_records(settings, loaded, encoder, policies, model_details)
        if self.mteb_scored:
            yield "of mteb", self.scored_by_mteb(name, encoder, policies)

    def dense_records(
        self,
        settings: EncoderSettings,
        loaded: LoadedTask,
        encoder: Encoder,
        policies: list[Policy],
        model_details: dict,
    ) -> Iterator[dict]:
        """Yield the records of a model's policies and hybrids on a task, with nDCG@10 by the length of the answers."""
        name, _ = self.systems[settings]
        lengths = None
        for policy in policies:
            details = model_details | {"policy": policy.spec, "vectors": "several" if policy.several else "one"}
            ranker = DenseRanker(encoder, policy, self.store, policies)
            for record in self.ranker_records(settings, loaded, f"{name} / {policy.spec}", ranker, details):
                if "by_length" not in record:  # a reused record has it
                    lengths = lengths or answer_tokens(encoder, loaded.task)
                    rows = lengths and by_length(record["query_scores"], lengths)
                    record["by_length"] = rows and {"tokenizer": name, "rows": rows}
                yield record

    def scored_by_mteb(self, name: str, encoder: Encoder, policies: list[Policy]) -> Iterator[dict]:
        """Yield the records of the tasks that mteb scores itself, under the policies that give one vector."""
        for policy in policies:
            if policy.several:
                message = "policy %s gives several vectors; mteb's own tasks take one, so it is left out"
                logger.warning(message, policy.spec)
                continue
            from .mteb_export import run_tasks

            yield from run_tasks(encoder, policy, self.mteb_scored, f"{name} / {policy.spec}")

    def ranker_records(
        self, settings: EncoderSettings, loaded: LoadedTask, system: str, ranker, details: dict
    ) -> Iterator[dict]:
        """Yield the record of a ranker alone, then of its hybrids with BM25."""
        method_names = {"rerank": f"rerank:{self.config.rerank_depth}"}
        hybrids = {method: f"{system} + bm25 ({method_names.get(method, method)})" for method in self.config.hybrids}
        if records := self.reusable(loaded, [system, *hybrids.values()], details.get("model_fingerprint")):
            yield from records
            return
        logger.info("%s on %s", system, loaded.task.name)
        start = time.perf_counter()
        run = ranker.rank(loaded.task)
        name, _ = self.systems[settings]
        details = details | {"name": name, **getattr(ranker, "report", {}), "hybrid": None}
        yield self.ranking_record(settings, loaded, system, run, details, time.perf_counter() - start)
        for method, hybrid_name in hybrids.items():
            start = time.perf_counter()
            combined, parameters = self.hybrid(method, loaded, ranker, run)
            details = details | {"hybrid": {"with": "bm25", "method": method, **parameters}}
            seconds = time.perf_counter() - start
            yield self.ranking_record(settings, loaded, hybrid_name, combined, details, seconds)

    def ranking_record(
        self, settings: EncoderSettings, loaded: LoadedTask, system: str, run: Run, details: dict, seconds: float
    ) -> dict:
        """Show a ranking to `on_ranking`, and return its record, with the overlap of the task and the training data."""
        self.on_ranking(system, loaded.task, run)
        scores = score_metrics(run, loaded.task.qrels)
        record = retrieval_record(system, settings, loaded, scores, run, details, seconds)
        keys = [(loaded.task.fingerprint, source) for source in settings.trained_on]
        return record | {"overlap": [each for key in keys for each in self.overlaps.get(key, [])] or None}

    def hybrid(self, method: str, loaded: LoadedTask, ranker, run: Run) -> tuple[Run, dict]:
        """Return the ranking of a hybrid with BM25, and the parameters of the method for the record."""
        if method == "rerank":
            depth = self.config.rerank_depth
            return ranker.rerank(loaded.task, loaded.bm25, depth), {"depth": depth}
        if method == "rrf":
            return reciprocal_rank_fusion([loaded.bm25, run]), {}
        if method == "standardized":
            return standardized_fusion(run, loaded.bm25), {}
        development = ranker.rank(loaded.development)
        weight, score = choose_weight(development, loaded.development_bm25, loaded.development.qrels)
        logger.info("weight %.2f of the model next to BM25: nDCG@10 %.4f on development data", weight, score)
        parameters = {"weight": weight, "development_split": loaded.development.split}
        parameters["development_ndcg_at_10"] = score
        return weighted_fusion(run, loaded.bm25, weight), parameters


def answer_tokens(encoder: Encoder, task: RetrievalTask) -> dict[str, int] | None:
    """Return {qid: number of tokens of its longest answer} of the queries that have an answer.

    Returns None if the encoder does not tell numbers of tokens.
    """
    if not hasattr(encoder, "count_tokens"):
        return None
    answers = {qid: found for qid in task.qrels if (found := task.answers(qid))}
    pids = sorted({pid for found in answers.values() for pid in found})
    tokens = encoder.count_tokens([task.documents[pid] for pid in pids], "document").tolist()
    counts = dict(zip(pids, tokens, strict=True))
    return {qid: max(counts[pid] for pid in found) for qid, found in answers.items()}
