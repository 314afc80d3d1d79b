"""`m2bert analyse`: what a task is like, and how a model reads, beyond one score. By itself:

python -m m2bert.eval.analyses.cli needle --encoder MODEL --data data/pydocs --task pydocs --output needle.json
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from m2bert.records import free_output, write_results
from m2bert.terminal import CommandGroup, shown

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
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]
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
    from .texts import describe_lengths, format_lengths, load_token_counter

    free_output(output, overwrite)
    count_tokens = load_token_counter(tokenizer)
    records = [describe_lengths(found, count_tokens, tokenizer) for found in load(data, task, split)]
    finish(output, records, format_lengths(records))


@app.command()
def spans(data: Data, output: Output, task: Tasks = None, split: Split = "test", overwrite: Overwrite = False) -> None:
    """Where in their documents answers begin (Table 12)."""
    from .texts import describe_spans, format_spans

    free_output(output, overwrite)
    records = [describe_spans(found) for found in load(data, task, split)]
    finish(output, records, format_spans(records))


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
    """Show what a task shares with data that a model was trained on, word for word and nearly."""
    from ..statistics import align
    from ..tasks.overlap import find_overlap

    free_output(output, overwrite)
    tested = load_one(data, task, split)
    trained = load_one(train_data or data, train_task or task, train_split)
    record = find_overlap(tested, trained)
    names = [f"{record[side]['task']} ({record[side]['split']})" for side in ("test", "train")]
    documents, queries = record["documents"], record["queries"]
    counts = [documents["count"], documents["same"], documents["near"], queries["count"], queries["same"]]
    header = ["test", "train", "documents", "the same", "nearly", "queries", "the same"]
    finish(output, [record], align(header, [[*names, *map(str, counts)]]))


@app.command()
def needle(
    encoder: Annotated[list[str], typer.Option(help="A model folder, a Hub id, mteb:NAME or bm25; repeat for more.")],
    data: Data,
    output: Output,
    task: Task = None,
    split: Split = "test",
    policy: Policies = None,
    passages: Annotated[int, typer.Option(min=2, help="Passages of each document, one of which answers.")] = 40,
    positions: Annotated[int | None, typer.Option(min=1, help="Places to try, evenly spaced; all by default.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="At most so many queries, drawn at random.")] = 100,
    passage_chars: Annotated[int, typer.Option(min=1, help="Length of a passage cut from a long document.")] = 1_000,
    seed: Seed = 0,
    cache: Cache = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
) -> None:
    """nDCG@10 with the answering passage at each place among others that do not answer (Table 17, Figure 2)."""
    from .needle import build_haystacks, format_needle, needle_positions, run_needle
    from .shared import load_systems, provenance

    free_output(output, overwrite)
    places = needle_positions(passages, positions)
    models = load_systems([name for name in encoder if name != "bm25"], policy or ["truncate"])
    haystacks = build_haystacks(load_one(data, task, split), passages, queries, passage_chars, seed)
    from ..rankers import Bm25Ranker, DenseRanker  # slow to import

    store = open_store(cache, no_cache)
    records = []
    if "bm25" in encoder:
        records.append(run_needle(haystacks, places, Bm25Ranker(), provenance("bm25", "bm25", "whole")))
    for model in models:
        records.append(run_needle(haystacks, places, DenseRanker(model.encoder, model.policy, store), model.about))
    finish(output, records, format_needle(records))


@app.command()
def clusters(
    encoder: Encoders,
    source: Annotated[
        list[str],
        typer.Option(help="NAME=PATH of a parquet file with a column text, or of a task's folder; repeat for more."),
    ],
    output: Output,
    texts: Annotated[int, typer.Option(min=1, help="At most so many of each source, drawn at random.")] = 200,
    split: Split = "test",
    policy: Policies = None,
    seed: Seed = 0,
    cache: Cache = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
) -> None:
    """Whether texts of one source lie together: t-SNE and the accuracy of nearest neighbors (Figure 3)."""
    from .clusters import cluster_sources, format_clusters, parse_sources
    from .shared import load_systems

    free_output(output, overwrite)
    paths = parse_sources(source)
    systems = load_systems(encoder, policy or ["truncate"], several=False)
    store = open_store(cache, no_cache)
    from ..rankers import read_of  # slow to import
    from ..tasks.load import read_source

    drawn = [(name, text) for name, path in paths.items() for text in read_source(path, texts, split, seed)]
    records = []
    for system in systems:
        vectors = store.embed(system.encoder, system.policy, [text for _, text in drawn]).vectors
        record = cluster_sources(vectors.rows, [name for name, _ in drawn], system.about, seed)
        records.append(record | {"truncated_texts": read_of(vectors.seen)[1]})
    finish(output, records, format_clusters(records))


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
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement, after a warm-up; the median counts.")] = 5,
    overwrite: Overwrite = False,
) -> None:
    """Seconds to embed one document of each length, its words taken from the data (Table 5)."""
    from .efficiency import LENGTHS_TOKENS, format_efficiency, measure_efficiency
    from .shared import load_systems

    free_output(output, overwrite)
    systems = load_systems(encoder, policy or ["truncate"])
    words = [word for found in load(data, task, split) for text in found.documents.values() for word in text.split()]
    logger = logging.getLogger("m2bert.eval.encoders.sentence_transformer")
    level = logger.level
    logger.setLevel(logging.ERROR)  # each of many repeats would warn of the same cut
    try:
        records = [
            measure_efficiency(encoder, policy, words, tokens or list(LENGTHS_TOKENS), about, repeats)
            for encoder, policy, about in systems
        ]
    finally:
        logger.setLevel(level)
    finish(output, records, format_efficiency(records))


def open_store(cache: Path | None, no_cache: bool):
    """Return where vectors are kept: the folder, the default one, or nowhere."""
    from ..encoders.cache import VectorStore, default_cache_folder

    return VectorStore(None if no_cache else cache or default_cache_folder())


def load(data: str, names: list[str] | None, split: str) -> list:
    """Return tasks of the data; all of them if none is named."""
    from ..tasks.load import load_tasks

    return load_tasks(data, names or None, split)


def load_one(data: str, name: str | None, split: str):
    """Return the task of that name, or the only one that the data have."""
    tasks = load(data, [name] if name else None, split)
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise ValueError(f"{data} has {len(tasks)} tasks; name one with --task: {names}")
    return tasks[0]


def finish(output: Path, records: list[dict], table: str) -> None:
    """Write the records, then print their table; of several processes the first does."""
    from ..progress import is_first

    if is_first():
        write_results(output, records)
        typer.echo(table)
        typer.echo(f"written to {shown(output)}")


if __name__ == "__main__":
    app()
