"""LoCoV1's tasks as classes of mteb.

    mteb.evaluate(model, [LoCoV1QMSum()])

Importing this file imports mteb. The data come from the Hub at its branch `main`, on which these classes were not yet
run.
"""

from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from ..hub_tasks import LOCOV1, load_hub_tasks
from .tasks import SUBSET, split_data

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
            (loaded,) = load_hub_tasks(LOCOV1, [self.task], split, self.metadata.dataset["revision"])
            self.dataset[SUBSET][split] = split_data(loaded)
        self.data_loaded = True


def _metadata(name: str, description: str, domains: list[str]) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=f"{description} Of LoCoV1, a benchmark of long documents (Saad-Falcon et al., 2024).",
        reference="https://arxiv.org/abs/2402.07440",
        dataset={"path": LOCOV1, "revision": "main"},
        prompt={"query": AbsTaskRetrieval.abstask_prompt},  # models that are given instructions look for one
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        domains=domains,
        license="apache-2.0",
        annotations_creators="derived",
        sample_creation="found",
        bibtex_citation=CITATION,
    )


class LoCoV1SummScreenFD(LoCoV1Retrieval):
    task = "summ_screen_fd"
    metadata = _metadata("LoCoV1SummScreenFD", "From a recap to the transcript of its episode.", ["Entertainment"])


class LoCoV1GovReport(LoCoV1Retrieval):
    task = "gov_report"
    metadata = _metadata("LoCoV1GovReport", "From a summary to the government report.", ["Government", "Written"])


class LoCoV1QMSum(LoCoV1Retrieval):
    task = "qmsum"
    metadata = _metadata("LoCoV1QMSum", "From a summary to the transcript of its meeting.", ["Spoken"])


class LoCoV1QasperTitle(LoCoV1Retrieval):
    task = "qasper_title"
    metadata = _metadata("LoCoV1QasperTitle", "From a paper's title to its full text.", ["Academic", "Written"])


class LoCoV1QasperAbstract(LoCoV1Retrieval):
    task = "qasper_abstract"
    metadata = _metadata("LoCoV1QasperAbstract", "From a paper's abstract to its full text.", ["Academic", "Written"])


class LoCoV1MultiFieldQA(LoCoV1Retrieval):
    task = "multifieldqa"
    metadata = _metadata("LoCoV1MultiFieldQA", "From a question to the text that answers it.", ["Written"])


class LoCoV1TwoWikiMQA(LoCoV1Retrieval):
    task = "2wikimqa"
    metadata = _metadata("LoCoV1TwoWikiMQA", "From a question of two steps to the articles.", ["Encyclopaedic"])


class LoCoV1PassageRetrieval(LoCoV1Retrieval):
    task = "passage_retrieval"
    metadata = _metadata(
        "LoCoV1PassageRetrieval", "From a summary of a paragraph to the document that holds it.", ["Encyclopaedic"]
    )


class LoCoV1CourtListenerHTML(LoCoV1Retrieval):
    task = "courtlistener_HTML"
    metadata = _metadata("LoCoV1CourtListenerHTML", "From the words that cite a case to the case, as HTML.", ["Legal"])


class LoCoV1CourtListenerPlainText(LoCoV1Retrieval):
    task = "courtlistener_Plain_Text"
    metadata = _metadata("LoCoV1CourtListenerPlainText", "From the words that cite a case to the case.", ["Legal"])


class LoCoV1LegalCaseReports(LoCoV1Retrieval):
    task = "legal_case_reports"
    metadata = _metadata("LoCoV1LegalCaseReports", "From a summary to the Australian case report.", ["Legal"])


class LoCoV1StackOverflow(LoCoV1Retrieval):
    task = "stackoverflow"
    metadata = _metadata("LoCoV1StackOverflow", "From a question to its answers.", ["Programming"])


LOCOV1_CLASSES = {cls.task: cls for cls in LoCoV1Retrieval.__subclasses__()}
