"""Retrieval tasks from the Hub: LoCoV1, LoCoV0, and any pair of data sets in their schema.

A pair is PATH-Queries and PATH-Documents with the columns of `m2bert.eval.tasks.locov1`. What is written here about the
pair hazyresearch/LoCoV1 comes from its public pages and from the research code; this file was tested on simulated
caches and has not yet run against the Hub.

LoCoV0 never had data sets of its own: the research code built its five tasks from tau/scrolls and qasper. Four of
them are the LoCoV1 tasks of the same name (the paper's Tables 15 and 23 print the same scores of E5-Mistral and Ada for
them). The fifth is QMSUM with one document for every query, 272 that hold 35 meetings; the LoCoV1 data had it so until
a later commit merged them. Hence LoCoV0 is read from that pair's history.
"""

import re

from m2bert.terminal import nearest

from .hub_reach import hub_or_cache, plain
from .locov1 import DOCUMENT_COLUMNS, QUERY_COLUMNS, RetrievalTask, check_columns, make_task, rows_of

LOCOV1 = "hazyresearch/LoCoV1"
LOCOV1_TASKS = (
    "summ_screen_fd",
    "gov_report",
    "qmsum",
    "qasper_title",
    "qasper_abstract",
    "multifieldqa",
    "2wikimqa",
    "passage_retrieval",
    "courtlistener_HTML",
    "courtlistener_Plain_Text",
    "legal_case_reports",
    "stackoverflow",
)
LOCOV0_TASKS = LOCOV1_TASKS[:5]
# "Upload 12 files" in both histories: the last commits before QMSUM's documents were merged.
LOCOV0_REVISION = "db3f60f,fde163bddbb5f3c2ad19769e18a570843da36ec3"

COMMIT_CHARS = 40


def load_hub_tasks(
    path: str, names: list[str] | None, split: str, revision: str | None = None, setting: str = "data"
) -> list[RetrievalTask]:
    """Load tasks of the pair PATH-Queries and PATH-Documents, downloaded on first use.

    Each task records the commits that were read, "QUERIES,DOCUMENTS", so that naming them again reads the same data.

    Args:
        names: values of the column `dataset`; None takes all.
        revision: branch, tag or commit of both; or two, "QUERIES,DOCUMENTS". The default is `main`.
        setting: what errors call `path`.

    Raises:
        ValueError: a data set, revision, split or task is not there; or see `m2bert.eval.tasks.locov1.make_task`.
    """
    hint = f"a local {setting} is a folder with queries/{split}.parquet and documents/{split}.parquet"
    revisions = _pair_of_revisions(revision)
    loaded = [
        load_table(f"{path}-{kind}", None, split, f"{setting}={path}", hint, columns, one)
        for kind, columns, one in zip(
            ("Queries", "Documents"), (QUERY_COLUMNS, DOCUMENT_COLUMNS), revisions, strict=True
        )
    ]
    commits = [commit for _, commit in loaded]
    tables = [table for table, _ in loaded]
    check_columns(tables[0], QUERY_COLUMNS, f"Hub data set '{path}-Queries'")
    check_columns(tables[1], DOCUMENT_COLUMNS, f"Hub data set '{path}-Documents'")
    known = sorted(filter(None, set(tables[1]["dataset"].to_pylist())))
    check_names(names, known, path)
    resolved = ",".join(commits) if all(commits) else None
    return [_task_of(tables, name, split, path, resolved) for name in names or known]


def check_names(names: list[str] | None, known: list[str] | tuple[str, ...], where: str) -> None:
    """Refuse a task that is not known, offering the nearest."""
    for name in names or []:
        if name not in known:
            raise ValueError(f"task {name!r} is not in {where}; tasks there: {', '.join(known)}{nearest(name, known)}")


def load_table(
    path: str,
    config: str | None,
    split: str,
    setting: str,
    hint: str,
    columns: tuple[str, ...] = (),
    revision: str | None = None,
):
    """Download a split of a data set of the Hub on first use; return a pyarrow table, and its commit if that is known.

    Args:
        setting, hint: what named it, and what it might have meant instead; for errors.

    Raises:
        ValueError: it cannot be loaded, lacks a column, or there is no network and the cache holds another commit.
    """
    import datasets

    try:
        with hub_or_cache(path, revision, "dataset") as silent:
            revision = full_commit(path, revision)
            data = datasets.load_dataset(path, config, split=split, revision=revision)
    except (OSError, ValueError) as error:  # not there, no such split, no network
        if silent:
            hint = f"the Hub does not answer ({silent}): go online; or {hint}"
        raise ValueError(
            f"{setting}: {path!r} is no local path, and as a data set of the Hub its split {split!r} cannot be loaded "
            f"({plain(error)}); {hint}"
        ) from error
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise ValueError(f"Hub data set {path!r} lacks the column {missing[0]!r}; it has {data.column_names}")
    commit = _commit_of(data)
    if revision and commit and re.fullmatch("[0-9a-f]{7,40}", revision) and not commit.startswith(revision):
        # Without a network, `datasets` takes the newest commit in its cache, whatever was asked for.
        raise ValueError(
            f"{setting}: the cache holds commit {commit} of {path!r}, not revision={revision}; go online to load that"
        )
    return data.with_format("arrow")[:], commit


def full_commit(path: str, revision: str | None) -> str | None:
    """Return the 40 characters of an abbreviated commit, for which the Hub is asked; anything else as it is.

    Raises:
        ValueError: the Hub cannot be asked, or knows none or several that begin so.
    """
    if revision is None or not re.fullmatch(f"[0-9a-f]{{7,{COMMIT_CHARS - 1}}}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        commits = [commit.commit_id for commit in HfApi().list_repo_commits(path, repo_type="dataset")]
    except OfflineModeIsEnabled:
        return revision  # the cache may hold it
    except Exception as error:  # of httpx or httpx2: which of them depends on the version of huggingface_hub
        raise ValueError(
            f"revision={revision} is abbreviated, and {path} does not say what it stands for: {plain(error)}"
        ) from error
    fitting = [commit for commit in commits if commit.startswith(revision)]
    if len(fitting) != 1:
        raise ValueError(f"revision={revision} fits {len(fitting)} commits of {path}; write a commit in full")
    return fitting[0]


def _pair_of_revisions(revision: str | None) -> list[str | None]:
    parts = revision.split(",") if revision else [None]
    if len(parts) > 2 or "" in parts:
        raise ValueError(f"revision={revision} is neither one revision nor two, as in QUERIES,DOCUMENTS; write either")
    return parts if len(parts) == 2 else parts * 2


def _commit_of(data) -> str | None:
    """Return the commit: the name of the folder in which `datasets` keeps its copy."""
    folders = {file["filename"].replace("\\", "/").split("/")[-2] for file in data.cache_files}
    commits = [folder for folder in folders if re.fullmatch(f"[0-9a-f]{{{COMMIT_CHARS}}}", folder)]
    return commits[0] if len(commits) == 1 else None


def _task_of(tables: list, name: str, split: str, path: str, revision: str | None) -> RetrievalTask:
    queries, documents = (rows_of(table, name) for table in tables)
    return make_task(name, split, queries, documents, source=path, revision=revision)
