"""LoCoV1's tasks as classes of mteb.

    import m2bert.eval.mteb_adapter.locov1
    mteb.evaluate(model, [mteb.get_task("LoCoV1QMSum")])

Importing this file imports mteb, and makes the names known to it. A task is read from two data sets: documents from
`dataset`, queries from QUERIES. Their revision is the branch `main`, of which no commit is known here; these classes
were not yet run on it. mteb keeps descriptive statistics of its own tasks in its own package, so there are none.
"""

from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import _TASKS_REGISTRY  # what mteb.get_task reads; there is no function that adds to it

from ..tasks.from_hub import LOCOV1, load_hub_tasks
from ..tasks.from_mteb import SUBSET, split_data

QUERIES = {"path": f"{LOCOV1}-Queries", "revision": "main"}
DOCUMENTS = {"path": f"{LOCOV1}-Documents", "revision": "main"}
CITATION = r"""
@inproceedings{saad-falcon-2024-locov1,
  author = {Saad-Falcon, Jon and Fu, Daniel Y. and Arora, Simran and Guha, Neel and R{\'e}, Christopher},
  booktitle = {International Conference on Machine Learning},
  title = {Benchmarking and Building Long-Context Retrieval Models with LoCo and M2-BERT},
  year = {2024},
}
"""


class LoCoV1Retrieval(AbsTaskRetrieval):
    """What the twelve tasks have in common. `task` is their value of the column `dataset`."""

    task: str

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        """Download the pair of data sets on first use, and take this task's rows."""
        if self.data_loaded:
            return
        self.dataset = {SUBSET: {}}
        for split in self.eval_splits:
            revisions = f"{QUERIES['revision']},{self.metadata.dataset['revision']}"
            (loaded,) = load_hub_tasks(LOCOV1, [self.task], split, revisions)
            self.dataset[SUBSET][split] = split_data(loaded)
        self.data_loaded = True


# When the texts of a source (the paper's Table 11) were written: not before the first year, which is early rather than
# exact, and not after the year in which the source, or the benchmark, was published.
YEARS = {
    "SCROLLS": (1950, 2022),
    "QASPER": (1990, 2021),
    "LongBench": (1950, 2023),
    "CourtListener": (1600, 2024),
    "Legal Case Reports": (2006, 2012),
    "Stack Overflow": (2008, 2024),
}


def _metadata(
    name: str, source: str, description: str, domains: list[str], subtype: str = "Article retrieval"
) -> TaskMetadata:
    first, last = YEARS[source]
    return TaskMetadata(
        name=name,
        description=f"{description} From {source}. Of LoCoV1, a benchmark of long documents (2024).",
        reference="https://arxiv.org/abs/2402.07440",
        dataset=DOCUMENTS,
        prompt={"query": AbsTaskRetrieval.abstask_prompt},  # models that are given instructions look for one
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=(f"{first}-01-01", f"{last}-12-31"),
        domains=domains,
        task_subtypes=[subtype],
        dialect=[],
        license="apache-2.0",
        annotations_creators="derived",
        sample_creation="found",
        bibtex_citation=CITATION,
    )


class LoCoV1SummScreenFD(LoCoV1Retrieval):
    task = "summ_screen_fd"
    metadata = _metadata(
        "LoCoV1SummScreenFD", "SCROLLS", "From a recap to the transcript of its episode.", ["Entertainment", "Spoken"]
    )


class LoCoV1GovReport(LoCoV1Retrieval):
    task = "gov_report"
    metadata = _metadata(
        "LoCoV1GovReport", "SCROLLS", "From a summary to the government report.", ["Government", "Written"]
    )


class LoCoV1QMSum(LoCoV1Retrieval):
    task = "qmsum"
    metadata = _metadata("LoCoV1QMSum", "SCROLLS", "From a summary to the transcript of its meeting.", ["Spoken"])


class LoCoV1QasperTitle(LoCoV1Retrieval):
    task = "qasper_title"
    metadata = _metadata(
        "LoCoV1QasperTitle", "QASPER", "From a paper's title to its full text.", ["Academic", "Written"]
    )


class LoCoV1QasperAbstract(LoCoV1Retrieval):
    task = "qasper_abstract"
    metadata = _metadata(
        "LoCoV1QasperAbstract", "QASPER", "From a paper's abstract to its full text.", ["Academic", "Written"]
    )


class LoCoV1MultiFieldQA(LoCoV1Retrieval):
    task = "multifieldqa"
    metadata = _metadata(
        "LoCoV1MultiFieldQA",
        "LongBench",
        "From a question to the text that answers it.",
        ["Written"],
        "Question answering",
    )


class LoCoV1TwoWikiMQA(LoCoV1Retrieval):
    task = "2wikimqa"
    metadata = _metadata(
        "LoCoV1TwoWikiMQA",
        "LongBench",
        "From a question of two steps to the articles.",
        ["Encyclopaedic", "Written"],
        "Question answering",
    )


class LoCoV1PassageRetrieval(LoCoV1Retrieval):
    task = "passage_retrieval"
    metadata = _metadata(
        "LoCoV1PassageRetrieval",
        "LongBench",
        "From a summary of a paragraph to the document that holds it.",
        ["Encyclopaedic", "Written"],
    )


class LoCoV1CourtListenerHTML(LoCoV1Retrieval):
    task = "courtlistener_HTML"
    metadata = _metadata(
        "LoCoV1CourtListenerHTML",
        "CourtListener",
        "From the words that cite a case to the case, as HTML.",
        ["Legal", "Written"],
    )


class LoCoV1CourtListenerPlainText(LoCoV1Retrieval):
    task = "courtlistener_Plain_Text"
    metadata = _metadata(
        "LoCoV1CourtListenerPlainText",
        "CourtListener",
        "From the words that cite a case to the case.",
        ["Legal", "Written"],
    )


class LoCoV1LegalCaseReports(LoCoV1Retrieval):
    task = "legal_case_reports"
    metadata = _metadata(
        "LoCoV1LegalCaseReports",
        "Legal Case Reports",
        "From a summary to the Australian case report.",
        ["Legal", "Written"],
    )


class LoCoV1StackOverflow(LoCoV1Retrieval):
    task = "stackoverflow"
    metadata = _metadata(
        "LoCoV1StackOverflow",
        "Stack Overflow",
        "From a question to its answers.",
        ["Programming", "Written"],
        "Question answering",
    )


LOCOV1_CLASSES = {cls.task: cls for cls in LoCoV1Retrieval.__subclasses__()}
_TASKS_REGISTRY.update({cls.metadata.name: cls for cls in LOCOV1_CLASSES.values()})
