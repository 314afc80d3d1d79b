"""Run every system of a configuration on every task: one record each, ready for JSON."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

Ranked = Callable[[str, RetrievalTask, Run], None]  # takes the name of a system, a task and the ranking


def named_systems(config: EvalConfig) -> dict[EncoderSettings, tuple[str, tuple[Policy, ...]]]:
    """Return each encoder's name and policies; names under a policy must be unique."""
    models = [encoder.model for encoder in config.encoders]
    for model in models:
        check_system(model, models)
    short = labels(models)
    systems = {}
    called: dict[tuple[str, Policy], EncoderSettings] = {}
    for encoder in dict.fromkeys(config.encoders):
        name = encoder.name or short[encoder.model]
        policies = tuple(dict.fromkeys(map(parse_policy, encoder.policies or config.policies)))
        for policy in policies:
            other = called.setdefault((name, policy), encoder)
            if other is not encoder:
                both = f"encoders {other.model!r} and {encoder.model!r}"
                raise ValueError(f"{both} would both be called '{name} / {policy.spec}'; give one another name")
        systems[encoder] = name, policies
    return systems


def load_all(config: EvalConfig, others_go_on: Callable) -> list[LoadedTask]:
    """Load every task of the configuration once, with its development task where a weighted hybrid needs one.

    Args:
        others_go_on: context, made from the text that begins a message, which decides what a failure ends.
    """
    loaded: dict[tuple, LoadedTask] = {}
    weighted = "weighted" in config.hybrids
    for settings in config.tasks:
        with others_go_on(f"data {settings.data!r} failed"):
            found = load_split(settings, settings.development_split) if weighted else []
            development = {task.name: task for task in found}
            for task in load_split(settings, settings.split):
                other = development.get(task.name)
                if weighted and (other is None or other.split == task.split):
                    raise ValueError(
                        f"development_split={settings.development_split!r} of task {task.name!r} is "
                        f"{'missing' if other is None else 'the split that is scored'}; choose another"
                    )
                loaded.setdefault((task.name, task.split, task.fingerprint), LoadedTask(settings, task, other))
    return list(loaded.values())


def load_split(settings: TaskSettings, split: str) -> list[RetrievalTask]:
    """Load the tasks of one split that are ranked here, distractors included."""
    names = list(settings.names) or None  # None stands for all that the data have
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
    """Return mteb's task objects of these names that are ranked here, or those that mteb scores itself."""
    if not names:
        return []
    from .from_mteb import mteb_tasks, ranked_here

    return [task for task in mteb_tasks(names) if ranked_here(task) == ranked]


@contextmanager
def _nothing_goes_on(_: str) -> Iterator[None]:
    yield


class Evaluation:
    """A run. Making it checks names and policies, then loads every task; models are loaded one by one as it runs.

    Attributes:
        systems: what tables call each encoder, and its policies.
        earlier: records of an interrupted run, which are not made again, by task, fingerprint and system.
        mteb_scored: mteb's task objects that mteb scores itself: classification, clustering, similarity, ...
        overlaps: {(fingerprint of a task, training task): what they share}.
        failures: one line for each task, encoder or policy that failed.
    """

    def __init__(
        self,
        config: EvalConfig,
        store: VectorStore,
        suite: bool = False,  # leave out tasks that cannot be loaded
        earlier: list[dict] | None = None,
    ):
        self.config, self.store = config, store
        self.ranked: Ranked = lambda system, task, run: None
        self.failures: list[str] = []
        self.tasks: list[LoadedTask] = []
        fields = ("task", "data_fingerprint", "system")
        self.earlier = {tuple(map(record.get, fields)): record for record in earlier or []}
        self.systems = named_systems(config)
        self.tasks = load_all(config, self.others_go_on if suite else _nothing_goes_on)
        names = [name for settings in config.tasks if settings.data == "mteb" for name in settings.names]
        self.mteb_scored = _mteb_tasks(names, ranked=False)
        self.overlaps: dict[tuple[str, TrainingTask], list[dict]] = {}
        for training in dict.fromkeys(training for encoder in config.encoders for training in encoder.trained_on):
            if isinstance(training, TrainingTask):
                found = load_tasks(training.data, [training.name], training.split)
                for loaded in self.tasks:
                    shared = [find_overlap(loaded.task, train) for train in found]
                    self.overlaps[loaded.task.fingerprint, training] = shared

    def run(self, ranked: Ranked | None = None, written: Callable[[list[dict]], None] | None = None) -> list[dict]:
        """Score all systems on all tasks; return the records.

        If an encoder or a policy fails, the others' results stay, and its own on other tasks. Among several processes
        a failing encoder ends the run, because the other processes would wait for this one; their vectors are kept.

        Args:
            ranked: called with every ranking.
            written: called with the records so far whenever one is there.

        Raises:
            ValueError: nothing was scored.
        """
        records: list[dict] = []
        self.ranked = ranked or self.ranked
        # Plain tfidf-rp comes last: it needs the widths of the others.
        for encoder in sorted(self.systems, key=lambda encoder: encoder.model == "tfidf-rp"):
            name = f"encoder {encoder.model!r} failed"
            with self.others_go_on(f"{name}, and it is left out"):
                parts = self.dense(encoder) if is_dense(encoder.model) else self.lexical(encoder, records)
                for task, found in parts:
                    with self.others_go_on(f"{name} on task {task!r}, and the rest of it there is left out"):
                        for record in found:
                            records.append(record)
                            if written:
                                written(records)
        if not records:
            nothing = "no task here is ranked, and mteb's other tasks need a model that gives vectors; add one"
            raise ValueError("; ".join(self.failures) or nothing)
        return records

    @contextmanager
    def others_go_on(self, failed: str) -> Iterator[None]:
        """Report an error in the block, begun by `failed`, and leave the block; among several processes raise it."""
        try:
            yield
        except (ValueError, OSError, ImportError, RuntimeError) as error:  # RuntimeError: torch's
            if has_others():
                raise
            self.report_failure(f"{failed}: {one_line(error)}")

    def report_failure(self, failure: str) -> None:
        """Log a failure and remember it while the others continue."""
        self.failures.append(failure)
        if len(self.systems) > 1 or len(self.tasks) != 1:  # else it is the last line of the command
            logger.error(failure)

    def known(self, loaded: LoadedTask, systems: list[str], model_fingerprint: str | None = None) -> list[dict]:
        """Return these systems' records of an interrupted run, if all are there and would be the same again."""
        task = loaded.task
        records = [self.earlier.get((task.name, task.fingerprint, system), {}) for system in systems]
        now = {"versions": decisive_versions(), "model_fingerprint": model_fingerprint}
        same = all(record and {key: record.get(key) for key in now} == now for record in records)
        return records if same else []

    def lexical(self, settings: EncoderSettings, others: list[dict]) -> Iterator[tuple[str, Iterator[dict]]]:
        """Yield each task's name with the records there of BM25 or TF-IDF.

        Plain `tfidf-rp` takes the widths of the models in the records of `others`.
        """
        names = [settings.model]
        if settings.model == "tfidf-rp":
            widths = sorted({record["dimensions"] for record in others if record.get("dimensions")})
            if not widths:
                self.report_failure("tfidf-rp is left out: no other encoder gave vectors whose width it could take")
            named = {record["encoder"] for record in others}
            names = [name for name in (f"tfidf-rp:{width}" for width in widths) if name not in named]
        for loaded, name in itertools.product(self.tasks, names):
            yield loaded.task.name, self.lexical_records(settings, loaded, name)

    def lexical_records(self, settings: EncoderSettings, loaded: LoadedTask, name: str) -> Iterator[dict]:
        """Yield the record of `bm25` or `tfidf-rp:WIDTH` on a task."""
        if known := self.known(loaded, [name]):
            yield from known
            return
        logger.info("%s on %s", name, loaded.task.name)
        start = time.perf_counter()
        details = {"name": name, "policy": "whole", "hybrid": None, "vectors": "none", "seen_share": 1.0}
        run = loaded.bm25 if name == "bm25" else None
        if run is not None:
            self.ranked(name, loaded.task, run)
            scores = score_metrics(run, loaded.task.qrels)
        else:
            scores, about = score_tfidf(int(name.removeprefix("tfidf-rp:")), loaded.task)
            details |= {"vectors": "one", **about}
        seconds = time.perf_counter() - start
        named_so = settings.model_copy(update={"model": name})
        yield retrieval_record(name, named_so, loaded, scores, run, details, seconds)

    def dense(self, settings: EncoderSettings) -> Iterator[tuple[str, Iterator[dict]]]:
        """Yield each task's name with the records there of every policy and hybrid of a model."""
        name, policies = self.systems[settings]
        encoder = load_system(settings.model)
        if hasattr(encoder, "rank"):  # a model of mteb that searches by itself
            lexical = {"vectors": "none", "claim": "untrained"}
            details = {"policy": "whole", **(lexical if encoder.is_lexical else {"vectors": "several"})}
            for loaded in self.tasks:
                yield loaded.task.name, self.measured(settings, loaded, name, encoder, details)
            return
        problems = {policy: policy.problem(encoder) for policy in policies}
        for policy, problem in problems.items():
            if problem:
                self.report_failure(f"encoder {settings.model!r} is left out under policy {policy.spec!r}: {problem}")
        policies = [policy for policy, problem in problems.items() if not problem]
        about = {
            "dimensions": encoder.dimensions,
            "max_tokens": encoder.max_tokens,
            "model_fingerprint": encoder.fingerprint,
            "model_files": model_files(expanded(settings.model)),
            "device": getattr(encoder, "device", None),
            "dtype": getattr(encoder, "dtype", None),
        }
        for loaded in self.tasks:
            yield loaded.task.name, self.dense_records(settings, loaded, encoder, policies, about)
        if self.mteb_scored:
            yield "of mteb", self.scored_by_mteb(name, encoder, policies)

    def dense_records(
        self, settings: EncoderSettings, loaded: LoadedTask, encoder: Encoder, policies: list[Policy], about: dict
    ) -> Iterator[dict]:
        """Yield the records of a model's policies and hybrids on a task, with nDCG@10 by length (Table 24)."""
        name, _ = self.systems[settings]
        lengths = None
        for policy in policies:
            details = about | {"policy": policy.spec, "vectors": "several" if policy.several else "one"}
            ranker = DenseRanker(encoder, policy, self.store, policies)
            for record in self.measured(settings, loaded, f"{name} / {policy.spec}", ranker, details):
                if "by_length" not in record:
                    lengths = lengths or answer_tokens(encoder, loaded.task)
                    rows = lengths and by_length(record["query_scores"], lengths)
                    record["by_length"] = rows and {"tokenizer": name, "rows": rows}
                yield record

    def scored_by_mteb(self, name: str, encoder: Encoder, policies: list[Policy]) -> Iterator[dict]:
        """Yield the records of mteb's own tasks under policies that give one vector."""
        for policy in policies:
            if policy.several:
                message = "policy %s gives several vectors; mteb's own tasks take one, so it is left out"
                logger.warning(message, policy.spec)
                continue
            from .mteb_export import run_tasks

            yield from run_tasks(encoder, policy, self.mteb_scored, f"{name} / {policy.spec}")

    def measured(
        self, settings: EncoderSettings, loaded: LoadedTask, system: str, ranker, details: dict
    ) -> Iterator[dict]:
        """Yield the record of a ranker alone, then of its hybrids with BM25."""

        def record(system: str, run: Run, seconds: float) -> dict:
            self.ranked(system, loaded.task, run)
            scores = score_metrics(run, loaded.task.qrels)
            made = retrieval_record(system, settings, loaded, scores, run, details, seconds)
            keys = [(loaded.task.fingerprint, training) for training in settings.trained_on]
            return made | {"overlap": [each for key in keys for each in self.overlaps.get(key, [])] or None}

        methods = {
            method: f"{system} + bm25 ({method}{f':{self.config.rerank_depth}' * (method == 'rerank')})"
            for method in self.config.hybrids
        }
        if known := self.known(loaded, [system, *methods.values()], details.get("model_fingerprint")):
            yield from known
            return
        logger.info("%s on %s", system, loaded.task.name)
        start = time.perf_counter()
        run = ranker.rank(loaded.task)
        name, _ = self.systems[settings]
        details = details | {"name": name, **getattr(ranker, "report", {}), "hybrid": None}
        yield record(system, run, time.perf_counter() - start)
        for method, called in methods.items():
            start = time.perf_counter()
            combined, how = self.hybrid(method, loaded, ranker, run)
            details = details | {"hybrid": {"with": "bm25", "method": method, **how}}
            yield record(called, combined, time.perf_counter() - start)

    def hybrid(self, method: str, loaded: LoadedTask, ranker, run: Run) -> tuple[Run, dict]:
        """Return the ranking of a hybrid with BM25, and the settings that the record keeps."""
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
        how = {"weight": weight, "development_split": loaded.development.split, "development_ndcg_at_10": score}
        return weighted_fusion(run, loaded.bm25, weight), how


def answer_tokens(encoder: Encoder, task: RetrievalTask) -> dict[str, int] | None:
    """Return {qid: tokens of its longest answer}, where one is there; None if the encoder shows no tokens."""
    if not hasattr(encoder, "count_tokens"):
        return None
    answers = {qid: found for qid in task.qrels if (found := task.answers(qid))}
    pids = sorted({pid for found in answers.values() for pid in found})
    tokens = encoder.count_tokens([task.documents[pid] for pid in pids], "document").tolist()
    counts = dict(zip(pids, tokens, strict=True))
    return {qid: max(counts[pid] for pid in found) for qid, found in answers.items()}
