"""From what a user writes after --data and --task to retrieval tasks."""

from pathlib import Path

from m2bert.terminal import nearest

from .from_csv import QUERIES, SPLIT, load_csv_folder
from .from_hub import LOCOV0_REVISION, LOCOV0_TASKS, LOCOV1, LOCOV1_TASKS, check_names, load_hub_tasks
from .locov1 import RetrievalTask, load_task, task_names

DOCUMENTS = "documents"
NAMED = ("locov1", "locov0", "mteb")


def load_tasks(
    data: str, names: list[str] | None, split: str, revision: str | None = None, documents: str = DOCUMENTS
) -> list[RetrievalTask]:
    """Load the named tasks of a source, or all of them.

    Args:
        data: a folder with queries/SPLIT.parquet and documents/SPLIT.parquet; a folder with queries.csv; "locov1" or
            "locov0"; PATH of a pair PATH-Queries and PATH-Documents on the Hub, as in org/name; or "mteb".
        names: of tasks there; for mteb also of benchmarks and of the paper's tables. None takes all, except for mteb.
        revision: of data on the Hub, see `hub_tasks.load_hub_tasks`.
        documents: folder of the documents, for a local task that has them in several variants.

    Raises:
        ValueError: the source, a name, the split or the variant is unknown, or the source cannot be read.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision} is for data on the Hub, and {data} is a folder; leave it out")
        return _from_folder(folder, names, split, documents)
    if documents != DOCUMENTS:
        raise ValueError(f"documents={documents!r} is for local folders, and {data!r} is none; leave it out")
    if data == "mteb":
        return _from_mteb(names, split, revision)
    if data in ("locov1", "locov0"):
        known = LOCOV1_TASKS if data == "locov1" else LOCOV0_TASKS
        check_names(names, known, data)
        default = None if data == "locov1" else LOCOV0_REVISION
        return load_hub_tasks(LOCOV1, names or list(known), split, revision or default)
    if data.count("/") != 1 or data.startswith((".", "/", "~")):
        meant = nearest(data.lower(), NAMED)
        raise ValueError(
            f"data={data!r} is no folder; give a folder, {', '.join(NAMED)} or a Hub id, as org/name{meant}"
        )
    return load_hub_tasks(data, names, split, revision)


def _from_folder(folder: Path, names: list[str] | None, split: str, documents: str) -> list[RetrievalTask]:
    if (folder / "queries").is_dir():
        if not (folder / documents).is_dir():
            variants = sorted(path.name for path in folder.glob("documents*") if path.is_dir())
            raise ValueError(
                f"documents={documents!r} is no folder in {folder}; there are {', '.join(variants) or 'none'}"
            )
        known = task_names(folder, split)
        check_names(names, known, str(folder))
        return [load_task(folder, name, split, documents) for name in names or known]
    if not (folder / QUERIES).is_file():
        raise ValueError(
            f"data={folder} has neither queries/{split}.parquet nor {QUERIES}; it needs one of them, and documents"
        )
    if documents != DOCUMENTS:
        raise ValueError(
            f"documents={documents!r} is for tables; beside {QUERIES} documents are in documents/ or a CSV"
        )
    if split != SPLIT:
        raise ValueError(f"{folder / QUERIES} is the split {SPLIT!r} and has no {split!r}; leave the split out")
    task = load_csv_folder(folder)
    check_names(names, [task.name], str(folder))
    return [task]


def _from_mteb(names: list[str] | None, split: str, revision: str | None) -> list[RetrievalTask]:
    if not names:
        raise ValueError(
            "data='mteb' has hundreds of tasks; name some, as in --task LEMBQMSumRetrieval or --task LongEmbed"
        )
    if revision is not None:
        raise ValueError(f"revision={revision} cannot be chosen for data='mteb', which fixes its own; leave it out")
    from .from_mteb import from_mteb

    return from_mteb(names, split)
