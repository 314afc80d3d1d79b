"""`m2bert analyse`: what a task is like, and how a model reads, beyond one score.

python -m m2bert.eval.analyses.cli needle --encoder MODEL --data data/pydocs --task pydocs --output needle.json
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from m2bert.command import CommandGroup
from m2bert.terminal import shown

app = typer.Typer(
    cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="What a task is like, and how a model reads, beyond one score.",
)  # fmt: skip

Data = Annotated[str, typer.Option(help="As in `m2bert eval`: a folder, locov1, a pair on the Hub, or mteb.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Task in the data; repeat for more. All by default.")]
Task = Annotated[str | None, typer.Option(help="Task in the data; not needed where there is only one.")]
Split = Annotated[str, typer.Option(help="Split to read.")]
Output = Annotated[Path, typer.Option(help="JSON file to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Encoders = Annotated[list[str], typer.Option("--encoder", help="A model folder, a Hub id or mteb:NAME; repeat.")]
Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="As in `m2bert eval`, by default truncate; repeat.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn by chance.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for vectors; by default under HF_HOME.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no vectors.")]


@app.command()
def lengths(
    data: Data,
    tokenizer: Annotated[str, typer.Option(help="A model folder, a tokenizer.json or a Hub id.")],
    output: Output,
    task: Tasks = None,
    split: Split = "test",
    overwrite: Overwrite = False,
) -> None:
    """Lengths of queries and documents in characters and tokens (Table 11, Figures 5 and 6)."""
    from .lengths import describe_lengths
    from .token_counter import load_token_counter

    target = check_output(output, overwrite)
    count_tokens = load_token_counter(tokenizer)
    records = [describe_lengths(found, count_tokens, tokenizer) for found in load(data, task, split)]
    finish(target, records)


@app.command()
def spans(data: Data, output: Output, task: Tasks = None, split: Split = "test", overwrite: Overwrite = False) -> None:
    """Where in their documents answers begin (Table 12)."""
    from .spans import describe_spans

    target = check_output(output, overwrite)
    finish(target, [describe_spans(found) for found in load(data, task, split)])


@app.command()
def overlap(
    data: Data,
    output: Output,
    task: Task = None,
    split: Split = "test",
    train_data: Annotated[str | None, typer.Option(help="Data trained on; by default the same.")] = None,
    train_task: Annotated[str | None, typer.Option(help="Task trained on; by default the same.")] = None,
    train_split: Annotated[str, typer.Option(help="Split trained on.")] = "train",
    overwrite: Overwrite = False,
) -> None:
    """What a task shares with data that a model was trained on, word for word and nearly."""
    from ..tasks.overlap import find_overlap

    target = check_output(output, overwrite)
    tested = load_one(data, task, split)
    trained = load_one(train_data or data, train_task or task, train_split)
    finish(target, [find_overlap(tested, trained)])


@app.command()
def needle(
    encoder: Annotated[list[str], typer.Option(help="A model folder, a Hub id, mteb:NAME or bm25; repeat for more.")],
    data: Data,
    output: Output,
    task: Task = None,
    split: Split = "test",
    policy: Policies = None,
    passages: Annotated[int, typer.Option(help="Passages of each document, one of which answers.")] = 40,
    positions: Annotated[int | None, typer.Option(help="Places to try, evenly spaced; all by default.")] = None,
    queries: Annotated[int, typer.Option(help="At most so many queries, drawn by chance.")] = 100,
    passage_chars: Annotated[int, typer.Option(help="Length of a passage cut from a long document.")] = 1_000,
    seed: Seed = 0,
    cache: Cache = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
) -> None:
    """nDCG@10 with the answering passage at each place among others that do not answer (Table 17, Figure 2)."""
    from .haystacks import build_haystacks, needle_positions
    from .systems import check_systems

    target = check_output(output, overwrite)
    places = needle_positions(passages, positions)
    policies = policy or ["truncate"]
    check_systems([name for name in encoder if name != "bm25"], policies)
    haystacks = build_haystacks(load_one(data, task, split), passages, queries, passage_chars, seed)
    from .needle import run_needle, systems_to_rank  # slow to import

    systems = systems_to_rank(encoder, policies, open_store(cache, no_cache))
    finish(target, [run_needle(haystacks, places, ranker, about) for ranker, about in systems])


@app.command()
def clusters(
    encoder: Encoders,
    source: Annotated[
        list[str],
        typer.Option(help="NAME=PATH of a parquet file with a column text, or of a task's folder; repeat for more."),
    ],
    output: Output,
    texts: Annotated[int, typer.Option(help="At most so many of each source, drawn by chance.")] = 200,
    split: Split = "test",
    policy: Policies = None,
    seed: Seed = 0,
    cache: Cache = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
) -> None:
    """Whether texts of one source lie together: t-SNE and the accuracy of nearest neighbours (Figure 3)."""
    from .clusters import cluster_sources
    from .systems import load_systems
    from .text_sources import parse_sources, read_source

    target = check_output(output, overwrite)
    paths = parse_sources(source)
    systems = load_systems(encoder, policy or ["truncate"], several=False)
    store = open_store(cache, no_cache)
    drawn = {name: read_source(path, texts, split, seed) for name, path in paths.items()}
    from ..rankers import read_of  # slow to import

    labels = [name for name, its_texts in drawn.items() for _ in its_texts]
    everything = [text for its_texts in drawn.values() for text in its_texts]
    records = []
    for system in systems:
        vectors = store.embed(system.encoder, system.policy, everything).vectors
        record = cluster_sources(vectors.rows, labels, system.about, seed)
        records.append(record | {"truncated_texts": read_of(vectors.seen)[1]})
    finish(target, records)


@app.command()
def efficiency(
    encoder: Encoders,
    data: Data,
    output: Output,
    task: Tasks = None,
    split: Split = "test",
    policy: Policies = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Length of a document; repeat. By default 128, 2048, 8192, 32768.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Of each measurement, after a warm-up; the median counts.")] = 5,
    overwrite: Overwrite = False,
) -> None:
    """Seconds to embed one document of each length, its words taken from the data (Table 5)."""
    from .efficiency import LENGTHS_TOKENS, measure_efficiency
    from .systems import load_systems

    target = check_output(output, overwrite)
    systems = load_systems(encoder, policy or ["truncate"])
    words = [word for found in load(data, task, split) for text in found.documents.values() for word in text.split()]
    sizes = tokens or list(LENGTHS_TOKENS)
    with truncation_unsaid():
        records = [
            measure_efficiency(system.encoder, system.policy, words, sizes, system.about, repeats) for system in systems
        ]
    finish(target, records)


@contextmanager
def truncation_unsaid() -> Iterator[None]:
    """Each of many repeats would warn of the same cut, which the record tells once."""
    logger = logging.getLogger("m2bert.eval.encoders.sentence_transformer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_output(output: Path, overwrite: bool) -> Path:
    """The output, if it may be written; asked before anything slow begins."""
    from ..results import free_output

    return free_output(output, overwrite)


def open_store(cache: Path | None, no_cache: bool):
    """Where vectors are kept: the folder, the default one, or nowhere."""
    from ..encoders.cache import VectorStore, default_cache_folder

    return VectorStore(None if no_cache else cache or default_cache_folder())


def load(data: str, names: list[str] | None, split: str) -> list:
    """Tasks of the data; all of them if none is named."""
    from ..tasks.load import load_tasks

    return load_tasks(data, names or None, split)


def load_one(data: str, name: str | None, split: str):
    """The task of that name, or the only one that the data have."""
    tasks = load(data, [name] if name else None, split)
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise ValueError(f"{data} has {len(tasks)} tasks; name one with --task: {names}")
    return tasks[0]


def finish(target: Path, records: list[dict]) -> None:
    """Write the records, then show them: one process does, where several run."""
    from ..results import write_results
    from .tables import format_analysis

    if int(os.environ.get("RANK", 0)):
        return
    write_results(target, records)
    typer.echo(format_analysis(records))
    typer.echo(f"written to {shown(target)}")


if __name__ == "__main__":
    app()
