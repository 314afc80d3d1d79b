"""Retrieval tasks from the Hub: LoCoV1, LoCoV0, and any pair of data sets in their schema.

A pair is PATH-Queries and PATH-Documents with the columns of `m2bert.eval.tasks.schema`. This file was tested on
simulated caches and has not yet run against the Hub; what it says about the pair hazyresearch/LoCoV1 comes from the
public pages of these data sets and from the research code.

LoCoV0 has no data sets: the research code built its five tasks from tau/scrolls and qasper. Four of them are the LoCoV1
tasks of the same name (the paper's Tables 15 and 23 print the same scores of E5-Mistral and Ada for them). The fifth is
QMSUM with one document for every query, 272 that hold 35 meetings; a later commit of LoCoV1 merged them. Hence LoCoV0
is read from the history of LoCoV1.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2bert.terminal import one_line

from .schema import (
    DOCUMENT_COLUMNS,
    QUERY_COLUMNS,
    RetrievalTask,
    check_names,
    make_task,
    names_in,
    rows_of,
    with_texts,
)

LOCOV1 = "hazyresearch/LoCoV1"
LOCOV1_TASKS = ("summ_screen_fd", "gov_report", "qmsum", "qasper_title", "qasper_abstract", "multifieldqa", "2wikimqa",
                "passage_retrieval", "courtlistener_HTML", "courtlistener_Plain_Text", "legal_case_reports",
                "stackoverflow")  # fmt: skip
LOCOV0_TASKS = LOCOV1_TASKS[:5]
# "Upload 12 files" in both histories: the last commits before QMSUM's documents were merged.
LOCOV0_REVISION = "db3f60f,fde163bddbb5f3c2ad19769e18a570843da36ec3"
TIMEOUT_SECONDS = 5  # to wait for a connection, and for an answer


def load_hub_tasks(
    path: str, names: list[str] | None, split: str, revision: str | None = None, setting: str = "data"
) -> list[RetrievalTask]:
    """Load tasks of the pair PATH-Queries and PATH-Documents, downloaded on first use.

    Each task records the commits that were read, "QUERIES,DOCUMENTS"; given as `revision` they read the same data.

    Args:
        names: values of the column `dataset`; None takes all.
        revision: branch, tag or commit of both; or two, "QUERIES,DOCUMENTS". The default is `main`.
        setting: what errors call `path`.
    """
    first, _, second = (revision or "").partition(",")
    hint = f"a local {setting} is a folder with queries/{split}.parquet and documents/{split}.parquet"
    tables, commits = [], []
    for kind, columns, one in (("Queries", QUERY_COLUMNS, first), ("Documents", DOCUMENT_COLUMNS, second or first)):
        table, commit = load_table(f"{path}-{kind}", None, split, f"{setting}={path}", hint, one or None)
        tables.append(with_texts(table, columns, f"Hub data set '{path}-{kind}'"))
        commits.append(commit)
    known = names_in(tables[1])
    check_names(names, known, path)
    resolved = ",".join(commits) if all(commits) else None
    return [
        make_task(name, split, *(rows_of(table, name) for table in tables), source=path, revision=resolved)
        for name in names or known
    ]


def load_table(path: str, config: str | None, split: str, setting: str, hint: str, revision: str | None = None):
    """Download a split of a data set of the Hub on first use; return a pyarrow table, and its commit if that is known.

    Args:
        setting, hint: for errors: what named the data set, and what it might have meant instead.
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
            f"({one_line(error)}); {hint}"
        ) from error
    # `datasets` keeps its copy in a folder that is called as the commit.
    folders = {Path(file["filename"]).parent.name for file in data.cache_files}
    commit = next((name for name in folders if re.fullmatch("[0-9a-f]{40}", name)), None) if len(folders) == 1 else None
    if commit and revision and re.fullmatch("[0-9a-f]{7,40}", revision) and not commit.startswith(revision):
        # Without a network, `datasets` takes the newest commit in its cache, whatever was asked for.
        raise ValueError(f"{setting}: the cache holds commit {commit} of {path!r}, not revision={revision}; go online")
    return data.with_format("arrow")[:], commit


def full_commit(path: str, revision: str | None) -> str | None:
    """Return the full form of an abbreviated commit by the history on the Hub, and any other revision unchanged."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not re.fullmatch("[0-9a-f]{7,39}", revision or ""):
        return revision
    try:
        history = HfApi().list_repo_commits(path, repo_type="dataset")
    except OfflineModeIsEnabled:
        return revision  # the cache may hold it
    return next((commit.commit_id for commit in history if commit.commit_id.startswith(revision)), revision)


@contextmanager
def hub_or_cache(repository: str, revision: str | None, kind: str = "model") -> Iterator[str]:
    """Ask the Hub once for a repository; if it does not answer, let its clients use their cache alone.

    Without this, its clients ask for every file six times. Yields why it does not answer, on one line and without
    credentials; empty if it does.

    Args:
        kind: of the repository, `model` or `dataset`.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reason = ""
    try:
        HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=TIMEOUT_SECONDS)
    except HFValidationError:  # a path
        pass
    except HfHubHTTPError as error:  # it answers: that there is no such repository, or that it has a failure
        reason = one_line(error) if error.response.status_code >= 500 else ""
    except Exception as error:  # of httpx or httpx2: which of them depends on the version of huggingface_hub
        reason = one_line(error)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before
