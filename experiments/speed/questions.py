"""The questions of the performance page: what is asked, what must be reached, and how to read it off records."""

from collections.abc import Callable
from dataclasses import dataclass

Record = dict
Answer = Callable[[list[Record]], float | None]


@dataclass(frozen=True)
class Question:
    """One row of the table.

    Attributes:
        device: `cpu` or `cuda`.
        text: what is measured.
        must, aim: values to reach; `unit` behind them.
        unit: `x` (a ratio: the larger the better), `ms` or `GB` (the smaller the better), or `x overhead`.
        answer: the measured value; None where the records do not hold it.
    """

    device: str
    text: str
    must: float
    aim: float | None
    unit: str
    answer: Answer

    @property
    def more_is_better(self) -> bool:
        return self.unit == "x"


def find(records: list[Record], arm: str, dtype: str, field: str = "seconds", **wanted) -> float | None:
    """`field` of the newest full-depth record of an arm whose other fields have the wanted values."""
    for record in reversed(records):
        values = {"arm": arm, "dtype": dtype, "op": None} | wanted
        if all(record.get(name) == value for name, value in values.items()) and record.get(field) is not None:
            return record[field]
    return None


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def against(device: str, ours: tuple[str, str], other: tuple[str, str], length: int, **wanted) -> Answer:
    """How many times faster `ours` (arm, dtype) is than `other` at one length."""
    wanted = {"device": device, "length": length, "mode": "forward", "batch": 1} | wanted

    def answer(records):
        for run in reversed(dict.fromkeys(record["run"] for record in records)):  # times compare within a run only
            found = ratio(find(records, *other, run=run, **wanted), find(records, *ours, run=run, **wanted))
            if found is not None:
                return found
        return None

    return answer


def fastest(records: list[Record], field: str = "seconds", scale: float = 1.0, **wanted) -> float | None:
    """Smallest value among our kernel arms in bfloat16 on a GPU."""
    values = [find(records, arm, "bfloat16", field, device="cuda", **wanted) for arm in ("ours", "ours-graph")]
    return min((value * scale for value in values if value is not None), default=None)


def long_conv(length: int) -> Answer:
    wanted = {"op": "long_conv", "device": "cuda", "length": length, "mode": "forward"}
    return lambda records: ratio(
        find(records, "plain", "bfloat16", **wanted), find(records, "ours", "bfloat16", **wanted)
    )


def query(dtype: str) -> Answer:
    wanted = {"device": "cpu", "mode": "query"}
    return lambda records: ratio(find(records, "original", "float32", **wanted), find(records, "ours", dtype, **wanted))


def padding_overhead(dtype: str) -> Answer:
    return lambda records: ratio(
        find(records, "ours", dtype, device="cpu", mode="mixed"),
        find(records, "ours", dtype, device="cpu", mode="alone"),
    )


def peak_gb(device: str, dtype: str, length: int, mode: str) -> Answer:
    def answer(records):
        peak = find(records, "ours", dtype, "peak_bytes", device=device, length=length, mode=mode, batch=1)
        return None if peak is None else peak / 1e9

    return answer


def modernbert_gpu(records: list[Record]) -> float | None:
    """Against the faster of its attention implementations."""
    wanted = {"device": "cuda", "length": 8192, "mode": "forward", "batch": 1}
    others = [find(records, arm, "bfloat16", **wanted) for arm in ("modernbert-base", "modernbert-base-flash")]
    other = min((seconds for seconds in others if seconds is not None), default=None)
    return ratio(other, find(records, "ours", "bfloat16", **wanted))


def _cpu() -> list[Question]:
    bf16, fp32, original = ("ours", "bfloat16"), ("ours", "float32"), ("original", "float32")
    rows = [
        Question("cpu", f"forward, bfloat16, against the original in float32, {length} tokens", must, 5, "x",
                 against("cpu", bf16, original, length))
        for length, must in ((512, 3.5), (2048, 4), (8192, 4), (32768, 4))
    ]  # fmt: skip
    rows += [
        Question("cpu", f"forward, float32, against the original in float32, {length} tokens", 1.3, 1.5, "x",
                 against("cpu", fp32, original, length))
        for length in (512, 2048, 8192, 32768)
    ]  # fmt: skip
    rows += [
        Question("cpu", f"forward, {dtype}, against ModernBERT-base in {dtype}, 8192 tokens", must, aim, "x",
                 against("cpu", ("ours", dtype), ("modernbert-base", dtype), 8192))
        for dtype, must, aim in (("float32", 5, 8), ("bfloat16", 12, 20))
    ]  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        rows += [
            Question("cpu", f"query of 32 tokens, {dtype}, against the original padding it to 32768", 300, 900, "x",
                     query(dtype)),
            Question("cpu", f"texts of 64 to 1024 tokens in one padded batch against each alone, {dtype}", 1.1, None,
                     "x overhead", padding_overhead(dtype)),
            Question("cpu", f"peak memory of a forward of 32768 tokens beyond weights and cache, {dtype}", 1.5, 1, "GB",
                     peak_gb("cpu", dtype, 32768, "forward")),
        ]  # fmt: skip
    return rows


def _gpu() -> list[Question]:
    rows = [
        Question("cuda", f"long convolution against torch rfft with cached filters, {length} tokens", must, aim, "x",
                 long_conv(length))
        for length, must, aim in ((2048, 3, 7), (8192, 2.2, 4.5), (32768, 1.6, 2.7))
    ]  # fmt: skip
    forward = {"mode": "forward", "scale": 1e3}
    return [
        *rows,
        Question("cuda", "forward, 1 x 32768 (floor on an H200: 8.0 ms)", 23, 14.6, "ms",
                 lambda records: fastest(records, length=32768, batch=1, **forward)),
        Question("cuda", "forward, 16 x 2048 (floor on an H200: 4.9 ms)", 17, 9.8, "ms",
                 lambda records: fastest(records, length=2048, batch=16, **forward)),
        Question("cuda", "forward against ModernBERT-base, 8192 tokens", 2, 3, "x", modernbert_gpu),
        Question("cuda", "training step, 1 x 32768 (floor on an H200: 24 ms)", 75, 45, "ms",
                 lambda records: fastest(records, length=32768, batch=1, mode="training", scale=1e3)),
        Question("cuda", "peak memory of that step beyond weights, without checkpointing", 20, 10, "GB",
                 peak_gb("cuda", "bfloat16", 32768, "training")),
    ]  # fmt: skip


QUESTIONS = [*_cpu(), *_gpu()]
