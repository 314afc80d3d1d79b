"""Tasks of mteb by name: its tasks, its benchmarks, and the groups of the paper's tables.

Only English subsets are taken where a task has them: the paper scores English alone.
"""

from m2bert.terminal import nearest

# As in MTEB(eng, v1), whose subsets of multilingual tasks are taken too; the paper leaves some of its tasks out.
PAPER_GROUPS = {
    "table-10": ("MultiLongDocRetrieval",),
    "table-14": (
        "MSMARCO",
        "TRECCOVID",
        "NFCorpus",
        "NQ",
        "HotpotQA",
        "FiQA2018",
        "ArguAna",
        "Touche2020",
        "QuoraRetrieval",
        "DBPedia",
        "SCIDOCS",
        "ClimateFEVER",
        "SciFact",
    ),
    "table-18": (
        "AmazonCounterfactualClassification",
        "AmazonPolarityClassification",
        "AmazonReviewsClassification",
        "Banking77Classification",
        "EmotionClassification",
        "ImdbClassification",
        "MassiveIntentClassification",
        "MassiveScenarioClassification",
        "MTOPDomainClassification",
        "MTOPIntentClassification",
        "ToxicConversationsClassification",
        "TweetSentimentExtractionClassification",
    ),
    "table-19": (
        "ArxivClusteringP2P",
        "ArxivClusteringS2S",
        "BiorxivClusteringP2P",
        "BiorxivClusteringS2S",
        "MedrxivClusteringP2P",
        "MedrxivClusteringS2S",
        "RedditClustering",
        "RedditClusteringP2P",
    ),
    "table-20": ("SprintDuplicateQuestions", "TwitterSemEval2015", "TwitterURLCorpus"),
    "table-21": ("AskUbuntuDupQuestions", "MindSmallReranking", "SciDocsRR", "StackOverflowDupQuestions"),
    "table-22": (
        "BIOSSES",
        "SICK-R",
        "STS12",
        "STS13",
        "STS14",
        "STS15",
        "STS16",
        "STS17",
        "STS22",
        "STSBenchmark",
    ),
}
PAPER_GROUPS["table-9"] = sum((PAPER_GROUPS[f"table-{number}"] for number in range(18, 23)), ())
PAPER_BENCHMARK = "MTEB(eng, v1)"


def mteb_tasks(names: list[str]) -> list:
    """Return mteb's task objects of task, benchmark and group names, each once, no data loaded.

    A task that averages others (CQADupstackRetrieval) is one object.

    Raises:
        ValueError: a name is unknown.
    """
    import mteb

    benchmarks = {benchmark.name for benchmark in mteb.get_benchmarks()}
    in_paper = {task.metadata.name: task for task in mteb.get_benchmark(PAPER_BENCHMARK).tasks}
    found = {}
    for name in names:
        if name in PAPER_GROUPS:
            tasks = [in_paper.get(member) or english_task(member) for member in PAPER_GROUPS[name]]
        elif name in benchmarks:
            tasks = list(mteb.get_benchmark(name).tasks)
        else:
            tasks = [in_paper.get(name) or english_task(name)]
        found |= {task.metadata.name: task for task in tasks}
    return list(found.values())


def ranked_here(task) -> bool:
    """Return whether a task of mteb can become a `RetrievalTask`.

    Not so what is no plain retrieval of texts, and tasks whose scoring leaves out each query's own document or averages
    several corpora: mteb scores those by itself (`m2bert.eval.mteb_adapter.run`).
    """
    from mteb.abstasks import AbsTaskRetrieval

    return (
        isinstance(task, AbsTaskRetrieval)
        and task.metadata.type == "Retrieval"
        and list(task.metadata.modalities) == ["text"]
        and not (task.ignore_identical_ids or task.skip_first_result)
    )


def english_task(name: str):
    """Return a task of mteb with its English subsets, or with all if it has none."""
    import mteb
    from mteb.get_tasks import get_tasks

    try:
        task = mteb.get_task(name)
    except KeyError:
        known = {task.metadata.name for task in get_tasks(exclude_superseded=False)} | set(PAPER_GROUPS)
        known |= {benchmark.name for benchmark in mteb.get_benchmarks()}
        raise ValueError(
            f"mteb has no task, benchmark or group called {name!r}; all: `mteb available-tasks`, "
            f"`mteb available-benchmarks`, and {', '.join(PAPER_GROUPS)}{nearest(name, known)}"
        ) from None
    if task.metadata.is_multilingual and "eng" in task.metadata.languages:
        return mteb.get_task(name, languages=["eng"], exclusive_language_filter=True)
    return task
