"""`m2bert eval` scores systems on retrieval tasks; `m2bert compare` sets systems against each other.

By itself: python -m m2bert.eval.cli eval --encoder bm25 --data data/pydocs --output results.json
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from m2bert.records import check_record, free_output, read_results, write_results
from m2bert.schema import checked
from m2bert.terminal import CommandGroup, one_line, shown

from .config import EvalConfig

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

BESIDE_CONFIG = {"config", "output", "cache", "no_cache", "overwrite"}  # parameters that go with a configuration


@app.command("eval")
def eval_command(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with systems and tasks, instead of the flags for them.")
    ] = None,
    encoder: Annotated[
        list[str], typer.Option(help="bm25, tfidf-rp[:WIDTH], a model folder, a Hub id or mteb:NAME; repeat for more.")
    ] = [],  # noqa: B006
    data: Annotated[
        str | None,
        typer.Option(help="Folder of tables, of BEIR or with queries.csv; locov1, locov0 or a pair on the Hub; mteb."),
    ] = None,
    task: Annotated[list[str], typer.Option(help="Task in the data; repeat for more. All by default.")] = [],  # noqa: B006
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    policy: Annotated[
        list[str],
        typer.Option(help="What happens to long documents: truncate, chunk-average, best-chunk, late-chunk; repeat."),
    ] = ["truncate"],  # noqa: B006
    hybrid: Annotated[list[str], typer.Option(help="Also combined with BM25: rerank, rrf, weighted; repeat.")] = [],  # noqa: B006
    development_split: Annotated[str, typer.Option(help="Where a weighted hybrid's weight is chosen.")] = "validation",
    documents: Annotated[str, typer.Option(help="Folder of the documents within the data.")] = "documents",
    distractors: Annotated[str | None, typer.Option(help="Text to draw documents from that answer nothing.")] = None,
    distractor_count: Annotated[int | None, typer.Option(help="How many of them; 2000 by default.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of data on the Hub.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for vectors; by default under HF_HOME.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no vectors.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Score systems on retrieval tasks: nDCG@10 with 95 % intervals, nDCG@1, recall@100, written as JSON."""
    settings = settings_of(context)
    target = free_output(output or settings.output, overwrite)
    from .encoders.cache import VectorStore, default_cache_folder  # slow to import
    from .progress import is_first
    from .run import Evaluation

    logging.getLogger("m2bert.eval").setLevel(logging.INFO)
    run = Evaluation(settings, VectorStore(None if no_cache else cache or default_cache_folder()))
    records = run.run()
    if is_first():  # under `accelerate launch` every process has the same records
        write_results(target, records)
        typer.echo(format_records(records))
        typer.echo(f"written to {shown(target)}")
    if run.failures:
        typer.echo(f"m2bert: {'; '.join(map(one_line, run.failures))}", err=True)
        raise typer.Exit(1)


def settings_of(context: typer.Context) -> EvalConfig:
    """Return the settings of a run, from its configuration file or from the flags."""
    flags = context.params
    if flags["config"] is not None:
        given = {name for name in flags if context.get_parameter_source(name).name == "COMMANDLINE"}
        if ignored := ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given - BESIDE_CONFIG)):
            raise ValueError(f"--config names encoders, data and what goes with them; leave out {ignored}")
        return EvalConfig.from_yaml(flags["config"])
    task = {name: flags[name] for name in ("data", "split", "documents", "revision", "development_split")}
    distractors = {"path": flags["distractors"], "count": flags["distractor_count"]}
    distractors = {name: value for name, value in distractors.items() if value is not None}
    task |= {"names": flags["task"], "distractors": distractors or None}
    settings = {"tasks": task, "encoders": flags["encoder"], "policies": flags["policy"], "hybrids": flags["hybrid"]}
    return checked(EvalConfig, settings, "--data, --encoder and other flags")


@app.command("compare")
def compare_command(
    results: Annotated[list[Path], typer.Argument(help="JSON files of `m2bert eval`.")],
    against: Annotated[str | None, typer.Option(help="System to compare with; every pair by default.")] = None,
) -> None:
    """Compare systems by nDCG@10 on the same queries: paired bootstrap, 95 % intervals."""
    from .statistics import align, by_task, differences

    groups = by_task(
        check_record(record, f"record {number} of {path}")
        for path in results
        for number, record in enumerate(read_results(path))
    )
    if not groups:
        raise ValueError("no retrieval scores in these files; `m2bert eval` writes them")
    for (task, split, fingerprint), group in groups.items():
        rows = []
        for row in differences(group, against):
            low, high = (100 * bound for bound in row["interval_95"])
            star = "*" if row["beyond_chance"] else ""
            difference = f"{100 * row['difference']:+.1f}"
            rows.append([row["system"], row["other"], difference, f"{low:+.1f} to {high:+.1f}", star])
        counted = f"{len(group[0]['query_scores'])} queries (fingerprint of task and split {fingerprint[:8]})"
        typer.echo(shown(f"{task}, {split}, {counted}"))
        typer.echo(align(["system", "minus", "points", "95 % interval", ""], rows))


def format_records(records: list[dict]) -> str:
    """Return an aligned table, scores in points (x 100)."""
    from .statistics import align, points

    rows = []
    for record in records:
        system = [record["system"], record["task"]]
        if record["kind"] == "mteb":
            rows.append([*system, points(record["value"], 2), record["metric"], "-", "-", "-", "-"])
            continue
        low, high = (points(bound, 2) for bound in record["interval_95"])
        recall = points(record["metrics"]["recall_at_100"]["mean"])
        counts = record["counts"]
        cut = [(counts[f"truncated_{what}"], counts[what]) for what in ("queries", "documents")]
        cut = ["-" if some is None else f"{some}/{every}" for some, every in cut]
        score = points(record["ndcg_at_10"], 2)
        rows.append([*system, score, f"{low} to {high}", recall, *cut, f"{record['seconds']:.1f}"])
    header = ["system", "task", "nDCG@10", "95 % interval", "recall@100", "queries cut", "documents cut", "seconds"]
    return align(header, rows)


if __name__ == "__main__":
    app()
