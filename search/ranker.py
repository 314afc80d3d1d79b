"""An index as `m2bert eval --index` scores it, which finds this by the entry point group `m2bert.rankers`."""

from collections.abc import Iterator, Mapping

from .index import Index


class IndexRanker(Mapping[str, str]):
    """Rank the documents of an index in each of its modes; as a mapping it is {id: text}, read when it is asked for.

    Attributes:
        name: the path of the index, or its address.
        digests: {id: digest of the document's content}.
        systems: {mode: what a record of `m2bert eval` says of it}.
    """

    def __init__(self, folder: str):
        self._index = Index.open(folder)
        self.name = self._index.folder
        self.digests = dict(self._index.table.rows("id", "digest"))
        settings = self._index.table.settings
        model = {"encoder": settings.model, "model_fingerprint": settings.fingerprint, "vectors": "several"}
        model |= {"policy": f"windows, late-chunk:{settings.vectors}", "seen_share": 1.0, "hybrid": None}
        self.systems = {
            "hybrid": model | {"hybrid": {"with": "bm25", "method": "standardized"}},
            "dense": model,
            "bm25": {"encoder": "bm25", "policy": "whole", "vectors": "none", "seen_share": 1.0, "hybrid": None},
        }

    def __getitem__(self, id: str) -> str:
        return self._index.document(id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def load(self) -> None:
        """Load the model; until then nothing slow has happened."""
        _ = self._index.encoder

    def rank(self, query: str, mode: str) -> dict[str, float]:
        """Return ids and scores of the documents that answer a query best."""
        return self._index.rank(query, mode)
