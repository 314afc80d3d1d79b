"""Score an index of documents on a user's own queries.

What makes and searches indexes is another package, which this one does not import. It offers a class by the entry
point `index` of the group `m2bert.rankers`: of a folder, a mapping {id: text} with `name`, `digests`, `systems`,
`load()` and `rank(query, system)`.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

from m2bert.files import read_json_lines
from m2bert.terminal import nearest

from ..config import EncoderSettings, TaskSettings
from ..progress import counted
from ..records import LoadedTask, retrieval_record
from ..search import HIGHEST_GRADE, Run, score_metrics
from ..tasks.load import document_name, read_rows
from ..tasks.schema import Qrels, RetrievalTask

GROUP = "m2bert.rankers"


def load_index(folder: str, queries: Path) -> tuple:
    """Return the ranker of an index, without its model, and the task of the queries; see `read_questions`."""
    questions = list(read_questions(queries))
    try:
        found = next(iter(entry_points(group=GROUP, name="index")), None)
        if found is None:
            raise ModuleNotFoundError(f"no package offers one in {GROUP}")
        ranker = found.load()(folder)
    except ModuleNotFoundError as error:
        raise ValueError(f"--index cannot be read here ({error}); pip install 'm2bert[search]'") from error
    texts, qrels = judged(questions, ranker, queries)
    content = json.dumps([texts, ranker.digests, qrels], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    name = Path(queries.name.removesuffix(".gz")).stem
    return ranker, RetrievalTask(name, "test", texts, ranker, qrels, fingerprint, str(queries))


def score_index(ranker, task: RetrievalTask, ranked: Callable[[str, RetrievalTask, Run], None] | None) -> list[dict]:
    """Return a retrieval record for each system of an index; `ranked` is called with every ranking."""
    loaded, records = LoadedTask(TaskSettings(data=task.source), task, None), []
    ranker.load()
    with counted(len(ranker.systems) * len(task.queries), "ranking", "question") as count:
        for mode, details in ranker.systems.items():
            start, run = time.perf_counter(), {}
            for qid, query in task.queries.items():
                run[qid] = ranker.rank(query, mode)
                count.add(1)
            seconds, system = time.perf_counter() - start, f"{Path(ranker.name).name} / {mode}"
            if ranked:
                ranked(system, task, run)
            scores = score_metrics(run, task.qrels)
            details = {"name": ranker.name} | details
            settings = EncoderSettings(model=details.pop("encoder"))
            records.append(retrieval_record(system, settings, loaded, scores, run, details, seconds))
    return records


def read_questions(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place and the cells of every row of a CSV or JSON-lines file.

    Columns are `query` and `answer`; optional are `relevance`, a grade, 1 by default, and `qid`. Rows of one query are
    several answers.
    """
    needed = ("query", "answer")
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        yield from ((f"{path}, line {line}", row) for line, row in read_rows(path, needed, needed))
        return
    for line, row in read_json_lines(path):
        cells = [row.get(name) for name in needed] if isinstance(row, dict) else [None]
        if not all(isinstance(cell, str) and cell.strip() for cell in cells):
            raise ValueError(f"{path}, line {line} is {row!r:.80}; give an object with the texts query and answer")
        yield f"{path}, line {line}", {name: str(value) for name, value in row.items() if value is not None}


def judged(questions: list[tuple[str, dict[str, str]]], ids: Iterable[str], path: Path) -> tuple[dict, Qrels]:
    """Return {qid: query} and the grades of the documents that answer; of queries without a qid, q1, q2, ...

    Raises ValueError naming the row if an answer is not one document, or two rows contradict each other.
    """
    names, numbers, texts, qrels = by_last_part(ids), {}, {}, {}
    for place, row in questions:
        query, answer, grade = row["query"].strip(), row["answer"], row.get("relevance", "").strip() or "1"
        qid = row.get("qid", "").strip() or numbers.setdefault(query, f"q{len(numbers) + 1}")
        id = document_of(answer, names, place)
        if not grade.isdecimal() or int(grade) > HIGHEST_GRADE:
            raise ValueError(f"{place}: relevance {grade!r} is no whole number from 0 to {HIGHEST_GRADE:,}; mend it")
        if texts.setdefault(qid, query) != query:
            raise ValueError(f"{place}: qid {qid!r} has another query before; give each query its own qid")
        if qrels.setdefault(qid, {}).setdefault(id, int(grade)) != int(grade):
            raise ValueError(f"{place}: answer {answer!r} has another relevance before; keep one of them")
    if not texts:
        raise ValueError(f"{path} has no queries; write one a row")
    for qid, grades in qrels.items():
        if not any(grades.values()):
            raise ValueError(f"{path}: query {texts[qid]!r:.80} has no answer of relevance 1 or more; add one")
    return texts, qrels


def by_last_part(ids: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Return {what follows the last / of a name: the names and ids that end so}."""
    found = defaultdict(list)
    for id in ids:
        name = with_slashes(id)
        found[name.rpartition("/")[2]].append((name, id))
    return dict(found)


def document_of(answer: str, names: dict[str, list[tuple[str, str]]], place: str) -> str:
    """Return the id that an answer is, or else is the end of, from a / on. Raises ValueError if that is not one."""
    wanted = with_slashes(answer).removeprefix("./")
    last = wanted.rpartition("/")[2]
    near = names.get(last, [])
    found = [id for name, id in near if name == wanted] or [id for name, id in near if name.endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"is the end of {len(found)} ids, {found[0]!r} and {found[1]!r} among them; write more of its path"
    else:
        problem = f"is no document of the index; write an id, or the end of one{nearest(last, names)}"
    raise ValueError(f"{place}: answer {answer!r} {problem}")


def with_slashes(text: str) -> str:
    """Return a document's name as names are compared, of a path on Windows too."""
    return document_name(text).replace("\\", "/")
