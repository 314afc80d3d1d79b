"""Where every number of a report comes from: one numbered row for each record."""

import re

from .blocks import DASH, Cell, Group, Prose, Section, Table, points, row

HEADER = ["No.", "system", "policy", "model", "trained on", "data", "versions", "device", "date"]


class Sources:
    """Numbers records in the order in which a report first names them."""

    def __init__(self):
        self._records: list[dict] = []

    def number(self, record: dict) -> int:
        """The row of the table of sources that describes this record, from 1."""
        for index, known in enumerate(self._records, 1):
            if known is record:
                return index
        self._records.append(record)
        return len(self._records)

    def cell(self, record: dict) -> Cell:
        """The record's system, pointing to its row."""
        return Cell(record["system"], source=self.number(record))

    def section(self) -> Section:
        """The table of sources, and the package versions that it names by letters."""
        versions: list[str] = []
        rows = [self._row(record, versions) for record in self._records]
        explained = [Prose(f"Versions {letter(index)}: {text}.") for index, text in enumerate(versions)]
        caption = "Models and data by the first digits of their fingerprints. Data from the Hub by revision."
        table = Table(caption, HEADER, [Group("", rows)], text_columns=len(HEADER))
        return Section("Sources", [table, *explained])

    def _row(self, record: dict, versions: list[str]) -> list[Cell]:
        text = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
        if text and text not in versions:
            versions.append(text)
        return row(
            Cell(str(self.number(record)), anchor=f"source-{self.number(record)}"),
            record["system"],
            policy_of(record),
            shorten(record.get("model_fingerprint")),
            "; ".join(record.get("trained_on") or []) or DASH,
            data_of(record),
            letter(versions.index(text)) if text else DASH,
            ", ".join(filter(None, [record.get("device"), record.get("dtype")])) or DASH,
            record.get("date") or DASH,
        )


def policy_of(record: dict) -> str:
    """A record's policy, and the settings of a hybrid."""
    hybrid = record.get("hybrid") or {}
    settings = [f"{hybrid['depth']} candidates"] if hybrid.get("depth") else []
    if hybrid.get("weight") is not None:
        chosen = f"{points(hybrid.get('development_ndcg_at_10'))} on {hybrid.get('development_split')}"
        settings = [f"weight {hybrid['weight']} of the model, chosen by nDCG@10 {chosen}"]
    return "; ".join([record.get("policy") or DASH, *settings])


def data_of(record: dict) -> str:
    """The data of a record: task, split, and revision or fingerprint."""
    task = ", ".join(filter(None, [record.get("task"), record.get("split")]))
    version = record.get("revision") or record.get("data_fingerprint")
    return " ".join(filter(None, [task, f"({shorten(version)})" if version else ""])) or DASH


def shorten(fingerprint: str | None) -> str:
    """The first digits of long hexadecimal numbers; other texts as they are."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b", r"\1", fingerprint) if fingerprint else DASH


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    first, last = divmod(index, 26)
    return (letter(first - 1) if first else "") + chr(ord("A") + last)
