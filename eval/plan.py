"""What a run will do: its systems, their names, and its tasks, all checked and loaded before the first model."""

from dataclasses import dataclass, field
from functools import cached_property

from .config import EncoderSettings, EvalConfig, TaskSettings, TrainingTask
from .encoders.policies import Policy, parse_policy
from .search import Run
from .systems import check_system, labels
from .tasks.load import add_distractors, load_tasks
from .tasks.overlap import find_overlap
from .tasks.schema import RetrievalTask


@dataclass(frozen=True)
class System:
    """What tables call an encoder, and its policies."""

    name: str
    policies: tuple[Policy, ...]


def named_systems(config: EvalConfig) -> dict[EncoderSettings, System]:
    """The systems of a run, none of which is called as another.

    Raises:
        ValueError: a model's name or a policy is wrong, or two would be called the same.
    """
    models = [encoder.model for encoder in config.encoders]
    for model in models:
        check_system(model, models)
    short = labels(models)
    systems: dict[EncoderSettings, System] = {}
    called: dict[tuple[str, Policy], str] = {}
    for encoder in dict.fromkeys(config.encoders):
        name = encoder.name or short[encoder.model]
        policies = tuple(dict.fromkeys(map(parse_policy, encoder.policies or config.policies)))
        for policy in policies:
            if (name, policy) in called:
                raise ValueError(
                    f"encoders {called[name, policy]!r} and {encoder.model!r} would both be called '{name} / "
                    f"{policy.spec}'; give one of them another name"
                )
            called[name, policy] = encoder.model
        systems[encoder] = System(name, policies)
    return systems


@dataclass(frozen=True)
class LoadedTask:
    """A task, the one on which a hybrid's weight is chosen (None if no hybrid needs it), and where they come from."""

    settings: TaskSettings
    task: RetrievalTask
    development: RetrievalTask | None

    @cached_property
    def bm25(self) -> Run:
        """BM25's ranking of the task, made once for all systems."""
        return _bm25(self.task)

    @cached_property
    def development_bm25(self) -> Run:
        """BM25's ranking of the development task."""
        return _bm25(self.development)


def _bm25(task: RetrievalTask) -> Run:
    from .rankers import Bm25Ranker

    return Bm25Ranker().rank(task)


@dataclass(frozen=True)
class Plan:
    """A run, worked out and not begun.

    Attributes:
        mteb_scored: see `mteb_scored`.
        overlaps: see `overlaps_of`.
    """

    config: EvalConfig
    systems: dict[EncoderSettings, System]
    tasks: list[LoadedTask]
    mteb_scored: list = field(default_factory=list)
    overlaps: dict[tuple[str, TrainingTask], list[dict]] = field(default_factory=dict)


def make_plan(config: EvalConfig) -> Plan:
    """Check names and policies, then load every task; no model yet.

    Raises:
        ValueError: a name, policy, task or training task is wrong.
    """
    systems = named_systems(config)
    tasks = load_all(config)
    return Plan(config, systems, tasks, mteb_scored(config), overlaps_of(config, tasks))


def load_all(config: EvalConfig) -> list[LoadedTask]:
    """Every task of the configuration once, with its development task where a weighted hybrid needs one.

    Raises:
        ValueError: a task cannot be loaded, or what it calls development is the split that is scored.
    """
    loaded: dict[tuple, LoadedTask] = {}
    for settings in config.tasks:
        development = {}
        if "weighted" in config.hybrids:
            development = {task.name: task for task in load_split(settings, settings.development_split)}
        for task in load_split(settings, settings.split):
            mine = development.get(task.name)
            if "weighted" in config.hybrids and (mine is None or mine.split == task.split):
                raise ValueError(
                    f"development_split={settings.development_split!r} of task {task.name!r} is "
                    f"{'missing' if mine is None else 'the split that is scored'}; choose another"
                )
            loaded.setdefault((task.name, task.split, task.fingerprint), LoadedTask(settings, task, mine))
    return list(loaded.values())


def overlaps_of(config: EvalConfig, loaded: list[LoadedTask]) -> dict[tuple[str, TrainingTask], list[dict]]:
    """{(fingerprint of a task, training task): what they share}, found before any model runs.

    Raises:
        ValueError: a training task cannot be loaded.
    """
    overlaps = {}
    for training in dict.fromkeys(training for encoder in config.encoders for training in encoder.trained_on):
        if isinstance(training, TrainingTask):
            found = load_tasks(training.data, [training.name], training.split)
            for task in (entry.task for entry in loaded):
                overlaps[task.fingerprint, training] = [find_overlap(task, train) for train in found]
    return overlaps


def mteb_scored(config: EvalConfig) -> list:
    """mteb's task objects that mteb scores by itself: classification, clustering, similarity, ..."""
    names = [name for settings in config.tasks if settings.data == "mteb" for name in settings.names]
    if not names:
        return []
    from .tasks.from_mteb import mteb_tasks, ranked_here

    return [task for task in mteb_tasks(names) if not ranked_here(task)]


def ranked_names(settings: TaskSettings) -> list[str] | None:
    """Names of the tasks that are ranked here; None takes all that the data have."""
    if settings.data != "mteb" or not settings.names:
        return list(settings.names) or None
    from .tasks.from_mteb import mteb_tasks, ranked_here

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
