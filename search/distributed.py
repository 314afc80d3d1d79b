"""Index files on a Ray cluster: workers read and embed them and write fragments, which one commit adds at the end.

Workers do not know each other's columns of metadata. So all files are read first, and the texts stay in Ray's object
store, on disk where memory ends. Then the columns are known, and workers embed with these.
"""

import logging
import os
import pickle
import socket
from collections import Counter
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from m2bert.eval.encoders.cache import portions
from m2bert.eval.progress import counted
from m2bert.terminal import one_line

from . import encoder as models
from .index import BATCH_CHARS, BATCH_DOCUMENTS, Index, Report, normalized, read_changed, rows_of
from .table import Settings, batch_of

GROUP_BYTES = 128_000_000  # of files that a worker embeds together, to one fragment
GROUP_FILES = 10_000
ROUNDS = 8  # a worker gets so many groups or more, if there are as many files


def connect(address: str, folder: str) -> None:
    """Connect to a cluster: `HOST:PORT`, `auto` for the one of this machine, `local` to start one on this machine."""
    if find_spec("ray") is None:
        raise ValueError(f"ray={address} needs Ray; pip install 'm2bert[ray]'")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is raised, too
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
        fix = "name HOST:PORT of `ray start --head`, auto on a machine of the cluster, or local for this machine alone"
        try:
            if address not in ("auto", "local"):  # Ray itself would try for four minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            dashboard = {"include_dashboard": False} if address == "local" else {}
            ray.init(address, log_to_driver=False, logging_level="error", **dashboard)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ValueError(f"ray={address} cannot be reached ({one_line(error)}); {fix}") from error
    machines = sum(node["Alive"] for node in ray.nodes())
    if machines > 1 and "://" not in folder:
        where = f"is a folder of this machine, and the cluster has {machines}"
        raise ValueError(f"index={folder} {where}; name object storage, such as s3://bucket/name")
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class ClusterIndex(Index):
    """An index whose `add` reads and embeds files on a Ray cluster, and commits them together at the end.

    `open` takes the cluster's address as `ray`; see `connect`. Documents that are no files are embedded here.
    """

    address = "auto"

    @classmethod
    def open(cls, folder: str | Path, *arguments, ray: str = "auto", **more) -> "ClusterIndex":
        """Open an index as `Index.open` does, for work on a cluster."""
        connect(ray, str(folder))  # before LanceDB has threads, which a cluster that is started here would copy
        index = super().open(folder, *arguments, **more)
        index.address = ray
        return index

    def _write_files(self, sizes: dict[Path, int], held: set[str | None], report: Report) -> None:
        import ray

        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        groups = _groups(sizes, dict(self.table.rows("path", "digest")), gpus or cpus)
        try:
            if groups:
                read, kinds, changed = _read_all(self, groups, report)
                if changed:
                    self.make_table()
                    self.table.add_columns(kinds)
                    self.table.commit(*_embed_all(self, read, kinds, gpus, cpus, held, report))
        except (ray.exceptions.RayError, WorkerError) as error:
            reason = one_line(str(error).strip().splitlines()[-1])  # before it, what called it
            fix = "nothing was committed; mend that and run it again"
            raise ValueError(f"ray={self.address}: the work stopped ({reason}); {fix}") from error


def _read_all(index: Index, groups: list[dict], report: Report) -> tuple:
    """Read all files; return them as a dataset, the columns of metadata, and how many files have changed."""
    from ray.data import from_items

    counts = Counter(path for [path] in index.table.rows("path"))
    read, changed = from_items(groups, override_num_blocks=len(groups)).map(_read).materialize(), 0
    kinds = index.table.kinds
    heads = [pickle.loads(row["head"]) for row in read.select_columns(["head"]).take_all()]
    for _, unchanged, failures, found, number in sorted(heads, key=lambda head: head[0]):  # as one process reads them
        report.unchanged += sum(counts[path] for path in unchanged)
        report.failures += failures
        changed += number
        for its in map(dict, found):
            if all(kinds.get(name, kind) is kind for name, kind in its.items()):
                kinds |= its
    return read, kinds, changed


def _embed_all(
    index: Index, read, kinds: dict[str, type], gpus: int, cpus: int, held: set[str | None], report: Report
) -> tuple[list, list[str], list[str]]:
    """Embed what was read; return fragments, and ids and paths in the index that they replace."""
    from ray.data import ActorPoolStrategy

    fragments, ids, paths, groups = [], [], [], read.count()
    settings = index.table.settings._replace(model=index.encoder.name)  # as this run names it
    embedded = read.map(
        _Embed, fn_constructor_args=(settings, index.device, (index.table.uri, index.table.schema), kinds),
        compute=ActorPoolStrategy(size=min(gpus or cpus, groups)), num_cpus=1, num_gpus=1 if gpus else 0,
    )  # fmt: skip
    with counted(groups, "indexing", "group") as count:
        for row in embedded.iter_rows():
            done = pickle.loads(row["done"])
            if isinstance(done, str):
                raise WorkerError(done)
            its, its_ids, its_paths, tokens, failures = done
            changed = [id for id in its_ids if id in held]
            fragments += its
            ids += changed
            paths += [path for path in its_paths if path in held]
            report.added += len(its_ids) - len(changed)
            report.updated += len(changed)
            report.tokens += tokens
            report.failures += failures
            count.add(1)
            count.describe(f"indexing, {report.tokens:,} tokens")
    return fragments, ids, paths


def _groups(sizes: dict[Path, int], known: dict[str, str], workers: int) -> list[dict]:
    """Return files with the digests that are known, in groups of about equal size."""
    most, groups, size = min(GROUP_BYTES, sum(sizes.values()) / (workers * ROUNDS)), [], 0
    for path, its in sizes.items():
        if not groups or size >= most or len(groups[-1]) >= GROUP_FILES:
            groups.append([])
            size = 0
        groups[-1].append((str(path), known.get(str(path))))
        size += its
    return [{"number": number, "files": pickle.dumps(files)} for number, files in enumerate(groups)]


def _read(group: dict) -> dict:
    """Read the changed files of a group; the head is what the driver must know of them."""
    files, unchanged, failures, kinds = [], [], [], {}
    for path, known in pickle.loads(group["files"]):
        documents, its, problem = read_changed(Path(path), known)
        if problem:
            failures.append((path, problem))
        elif not documents:
            unchanged.append(path)
        else:
            files.append((documents, path, its))
            with suppress(ValueError):  # raised and reported once more by who embeds it
                kinds[tuple(sorted(normalized(documents, {})[1].items()))] = None
    head = group["number"], unchanged, failures, list(kinds), len(files)
    return {"head": pickle.dumps(head), "files": pickle.dumps(files)}


class WorkerError(Exception):
    """What a worker could not do, in a line."""


class _Embed:
    """Hold one encoder in a process, and write a group's documents as fragments that are not in the table yet."""

    def __init__(self, settings: Settings, device: str | None, place: tuple, kinds: dict[str, type]):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: Ray sets OMP_NUM_THREADS to its CPUs
        self.settings, self.device, self.place, self.kinds = settings, device, place, kinds

    @cached_property
    def encoder(self):
        encoder = models.Encoder(self.settings.model, self.device)
        if encoder.fingerprint != self.settings.fingerprint:
            problem = f"has other weights on {socket.gethostname()}; copy the folder to every machine"
            raise ValueError(f"model={self.settings.model} {problem}")
        return encoder

    def __call__(self, group: dict) -> dict:
        """Return what was done, or an error as a line: Ray would show it with everything that called it."""
        try:
            return {"done": pickle.dumps(self._written(pickle.loads(group["files"])))}
        except Exception as error:
            return {"done": pickle.dumps(one_line(error))}

    def _written(self, files: list) -> tuple[list, list[str], list[str], int, list[tuple[str, str]]]:
        import pyarrow as pa
        from lance.fragment import write_fragments

        (uri, schema), sources, failures, tokens = self.place, [], [], 0
        for documents, path, its in files:
            try:
                sources += [(document, path, its) for document in normalized(documents, self.kinds)[0]]
            except ValueError as error:
                failures.append((path, str(error)))

        def batches():
            nonlocal tokens
            for portion in portions([document.text for document, _, _ in sources], BATCH_CHARS, BATCH_DOCUMENTS):
                rows = rows_of(sources[portion], self.encoder, self.settings.vectors)
                tokens += sum(row["tokens"] for row in rows)
                yield batch_of(rows, schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        fragments = write_fragments(reader, uri, schema) if sources else []
        ids, paths = [document.id for document, _, _ in sources], list(dict.fromkeys(path for _, path, _ in sources))
        return fragments, ids, paths, tokens, failures
