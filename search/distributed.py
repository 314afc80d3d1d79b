"""Index files on a Ray cluster: tasks read them, actors embed them and write fragments, one commit adds all at the end.

The driver hands the texts on, and decides as one process does what has changed and which columns there are.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from m2bert.eval.encoders.cache import portions
from m2bert.terminal import one_line

from . import encoder as models
from .index import BATCH_CHARS, BATCH_DOCUMENTS, Index, Report, Source, rows_of
from .table import Settings, batch_of

GROUP_CHARS = 128_000_000  # of documents that a worker embeds together, to one fragment
GROUP_DOCUMENTS = 10_000
ROUNDS = 8  # a worker gets so many groups or more, if there is as much to do
AHEAD = 1  # files that are read or wait in memory, for each CPU


def connect(address: str, folder: str) -> None:
    """Connect to a cluster: `HOST:PORT`, `auto` for the one of this machine, `local` to start one on this machine."""
    if find_spec("ray") is None:
        raise ValueError(f"ray={address} needs Ray; pip install 'm2bert[ray]'")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is raised, too
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
        fix = "name HOST:PORT of `ray start --head`, auto on a machine of the cluster, or local for this machine alone"
        try:
            if address not in ("auto", "local"):  # Ray itself would try for four minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            dashboard = {"include_dashboard": False} if address == "local" else {}
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **dashboard)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ValueError(f"ray={address} cannot be reached ({one_line(error)}); {fix}") from error
    machines = sum(node["Alive"] for node in ray.nodes())
    if machines > 1 and "://" not in folder:
        where = f"is a folder of this machine, and the cluster has {machines}"
        raise ValueError(f"index={folder} {where}; name object storage, such as s3://bucket/name")


class ClusterIndex(Index):
    """An index whose `add` reads and embeds on a Ray cluster, and commits everything together at the end.

    `open` takes the cluster's address as `ray`; see `connect`. Documents that are no files are read here.
    """

    address = "auto"

    @classmethod
    def open(cls, folder: str | Path, *arguments, ray: str = "auto", **more) -> "ClusterIndex":
        """Open an index as `Index.open` does, for work on a cluster."""
        connect(ray, str(folder))  # before Lance has threads, which a cluster that is started here would copy
        index = super().open(folder, *arguments, **more)
        index.address = ray
        return index

    def _each(self, function: Callable, *given: Iterable) -> Iterator:
        """Yield what a function returns for each of the arguments, in their order, from tasks that run ahead."""
        import ray

        task, waiting = ray.remote(function), deque()
        for arguments in zip(*given, strict=True):
            waiting.append(task.remote(*arguments))
            if len(waiting) > AHEAD * ray.cluster_resources().get("CPU", 1):
                yield ray.get(waiting.popleft())
        yield from map(ray.get, waiting)

    def _write(self, changes, total: int, number: int, held: set[str | None], report: Report) -> None:
        import ray

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self._workers = gpus or int(resources.get("CPU", 1))
        its = {"num_gpus": 1, "num_cpus": 0} if gpus else {}  # by default a CPU to be placed, none that it holds
        self._actor = ray.remote(max_restarts=-1, max_task_retries=-1, **its)(_Worker)
        self._pool, self._fragments, self._ids, self._paths = None, [], [], []
        self.batch_chars = min(GROUP_CHARS, total // (self._workers * ROUNDS) + 1)
        self.batch_documents = GROUP_DOCUMENTS
        try:
            super()._write(changes, total, number, held, report)
            while self._pool and self._pool.has_next():
                self._collect(report)
        except ray.exceptions.RayError as error:
            reason = getattr(error, "cause", None) or str(error).strip().splitlines()[-1]  # before it, what called it
            fix = "nothing was committed; mend that and run it again"
            raise ValueError(f"ray={self.address}: the work stopped ({one_line(reason)}); {fix}") from error
        if self._fragments:
            self.table.commit(self._fragments, self._ids, self._paths)

    def _store(self, batch: list[Source], ids: list[str], paths: list[str], report: Report) -> None:
        from ray.util import ActorPool

        if self._pool is None:
            settings = self.table.settings._replace(model=self.encoder.name)  # as this run names it
            self._pool = ActorPool([self._actor.remote(settings, self.device) for _ in range(self._workers)])
        if not self._pool.has_free():
            self._collect(report)
        its = batch, self.table.uri, self.table.schema
        self._pool.submit(lambda worker, given: worker.write.remote(*given), its)
        self._ids += ids
        self._paths += paths

    def _collect(self, report: Report) -> None:
        """Wait for a worker; take what it wrote."""
        fragments, tokens = self._pool.get_next_unordered()
        self._fragments += fragments
        report.tokens += tokens


class _Worker:
    """Hold one encoder in a process, and write documents as fragments that are not in the table yet."""

    def __init__(self, settings: Settings, device: str | None):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process, as Ray sets OMP_NUM_THREADS
        self.settings, self.device, self.encoder = settings, device, None

    def write(self, sources: list[Source], uri: str, schema) -> tuple[list, int]:
        """Return fragments and how many tokens they hold."""
        import pyarrow as pa
        from lance.fragment import write_fragments

        if self.encoder is None:
            self.encoder = models.Encoder(self.settings.model, self.device)
        if self.encoder.fingerprint != self.settings.fingerprint:
            problem = f"has other weights on {socket.gethostname()}; copy the folder to every machine"
            raise ValueError(f"model={self.settings.model} {problem}")
        tokens = 0

        def batches():
            nonlocal tokens
            for portion in portions([document.text for document, _, _ in sources], BATCH_CHARS, BATCH_DOCUMENTS):
                rows = rows_of(sources[portion], self.encoder, self.settings.vectors)
                tokens += sum(row["tokens"] for row in rows)
                yield batch_of(rows, schema)

        return write_fragments(pa.RecordBatchReader.from_batches(schema, batches()), uri, schema), tokens
