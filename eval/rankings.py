"""Rankings for a person and for other programs: what stands at which rank, and files in TREC's formats."""

import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import typer

from m2bert.terminal import shown

from .records import best_rank
from .search import Run, trec_order
from .tasks.schema import RetrievalTask
from .trec import check_ids, write_qrels, write_run

TEXT_CHARS = 80  # of a query and of a document


def show_ranking(system: str, task: RetrievalTask, run: Run, first: int) -> str:
    """Return for every query its `first` best documents, with a + before those that are relevant.

    A line holds rank, score, id, and the beginning of the text where the task has it.
    """
    lines = [f"{task.name}, {task.split}: {system}"]
    for qid, judged in task.qrels.items():
        scores = run.get(qid, {})
        rank = best_rank(scores, judged)
        found = f"first answer at rank {rank}" if rank else f"no answer among {len(scores):,} documents"
        lines += ["", "  ".join([qid, *_beginning(task.queries.get(qid)), f"({found})"])]
        for place, pid in enumerate(trec_order(scores)[:first], start=1):
            mark = "+" if judged.get(pid, 0) > 0 else " "
            lines.append(
                "  ".join([f"{mark}{place:>4}", f"{scores[pid]:.4f}", pid, *_beginning(task.documents.get(pid))])
            )
    return "\n".join(map(shown, lines)) + "\n"


def _beginning(text: str | None) -> list[str]:
    words = " ".join((text or "")[: 2 * TEXT_CHARS].split())
    return [words if len(words) <= TEXT_CHARS else f"{words[: TEXT_CHARS - 3]}..."] if words else []


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "-", name).strip("-.") or "unnamed"


def looker(
    show: int | None, folder: Path | None, tasks: Iterable[RetrievalTask] = ()
) -> Callable[[str, RetrievalTask, Run], None] | None:
    """Return a function of a system's name, a task and a ranking, which shows and writes what is wanted of it.

    Args:
        folder: for SYSTEM.run and TASK.qrels, in a folder named after the task; of two tasks of one name, the second's
            has the first digits of its fingerprint.

    Raises ValueError, before anything is ranked, if run files cannot hold the ids of `tasks`.
    """
    for task in tasks if folder else ():
        check_ids({*task.queries, *task.documents, *chain(*task.qrels.values())}, f"task {task.name!r}")

    named: dict[str, str] = {}  # {name of a folder: fingerprint of its task}

    def look(system: str, task: RetrievalTask, run: Run) -> None:
        if show:
            typer.echo(show_ranking(system, task, run, show))
        if folder:
            name = _file_name(task.name)
            if named.setdefault(name, task.fingerprint) != task.fingerprint:
                name = f"{name}-{task.fingerprint[:8]}"
            write_run(folder / name / f"{_file_name(system)}.run", run, system)
            write_qrels(folder / name / f"{name}.qrels", task.qrels)

    return look if show or folder else None
