"""`m2bert eval` scores systems on retrieval tasks; `m2bert compare` sets systems against each other.

By itself: python -m m2bert.eval.cli eval --encoder bm25 --data data/pydocs --output results.json
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from m2bert.files import check_writable
from m2bert.records import check_record, free_output, read_results, write_results
from m2bert.schema import checked
from m2bert.terminal import CommandGroup, one_line, shown

from .config import EvalConfig
from .suite import format_suite, suite_folders

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

OUTPUTS = {"output", "overwrite", "write_run", "show"}
BESIDE = {  # parameters that go with one that says what is scored
    "config": {"config", "cache", "no_cache"} | OUTPUTS,
    "run": {"run", "qrels"} | OUTPUTS,
    "index": {"index", "queries"} | OUTPUTS,
    "suite": {"suite", "encoder", "split", "policy", "hybrid", "development_split", "documents", "distractors"}
    | {"distractor_count", "cache", "no_cache"}
    | OUTPUTS,
}


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
        typer.Option(
            help="Folder of tables, of BEIR or with queries.csv; locov1, locov0, a Hub pair; ir_datasets:ID; mteb."
        ),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="Folder of such folders, instead of --data: all their tasks, and the mean.")
    ] = None,
    run: Annotated[
        list[Path], typer.Option(help="Run file of any system, in TREC format, instead of encoders and data; repeat.")
    ] = [],  # noqa: B006
    qrels: Annotated[Path | None, typer.Option(help="Judgments in TREC format, for --run.")] = None,
    index: Annotated[
        str | None, typer.Option(help="Folder of an index of `m2bert index`, instead of encoders and data.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="CSV of query, answer (an id or the end of a path), relevance; for --index.")
    ] = None,
    task: Annotated[list[str], typer.Option(help="Task in the data; repeat for more. All by default.")] = [],  # noqa: B006
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    policy: Annotated[
        list[str],
        typer.Option(help="What happens to long documents: truncate, chunk-average, best-chunk, late-chunk; repeat."),
    ] = ["truncate"],  # noqa: B006
    hybrid: Annotated[
        list[str], typer.Option(help="Also combined with BM25: rerank, rrf, standardized, weighted; repeat.")
    ] = [],  # noqa: B006
    development_split: Annotated[str, typer.Option(help="Where a weighted hybrid's weight is chosen.")] = "validation",
    documents: Annotated[str, typer.Option(help="Folder of the documents within the data.")] = "documents",
    distractors: Annotated[str | None, typer.Option(help="Text to draw documents from that answer nothing.")] = None,
    distractor_count: Annotated[int | None, typer.Option(help="How many of them; 2000 by default.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of data on the Hub.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    show: Annotated[
        int | None, typer.Option(min=1, help="Print so many documents of every query, and where its answer stands.")
    ] = None,
    write_run: Annotated[Path | None, typer.Option(help="Folder for rankings and judgments in TREC formats.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for vectors; by default under HF_HOME.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no vectors.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Score systems on retrieval tasks: nDCG@10 with 95 % intervals, nDCG@1, recall@100, written as JSON."""
    settings = settings_of(context)
    if write_run:
        check_folder(write_run, overwrite)
    if settings is None:
        target = output and free_output(output, overwrite)
        given = index_records(index, queries, show, write_run) if index else run_records(run, qrels, show, write_run)
        show_given(given, target)
        return
    target = free_output(output or settings.output, overwrite or suite is not None)
    earlier = []
    if target.exists() and not overwrite:  # an interrupted run of a suite goes on
        earlier = [check_record(each, f"record {place} of {target}") for place, each in enumerate(read_results(target))]
    from .encoders.cache import VectorStore, default_cache_folder  # slow to import
    from .progress import has_others, is_first
    from .run import Evaluation
    from .runs.show import looker

    logging.getLogger("m2bert.eval").setLevel(logging.INFO)
    store = VectorStore(None if no_cache else cache or default_cache_folder())
    known = [] if show or write_run or has_others() else earlier
    evaluation = Evaluation(settings, store, suite=suite is not None, earlier=known)
    tasks = [loaded.task for loaded in evaluation.tasks]

    def write(records: list[dict]) -> None:
        if is_first():  # under `accelerate launch` every process has the same records
            write_results(target, [*without(earlier, records), *records])

    records = evaluation.run(looker(show, write_run, tasks) if is_first() else None, write if suite else None)
    write(records)
    if is_first():
        typer.echo(format_suite(records) if suite else format_records(records))
        typer.echo(f"written to {shown(target)}")
    if evaluation.failures:
        typer.echo(f"m2bert: {'; '.join(map(one_line, evaluation.failures))}", err=True)
        raise typer.Exit(1)


def run_records(runs: list[Path], qrels: Path, show: int | None, write_run: Path | None) -> list[dict]:
    """Return the records of run files."""
    from .runs.score import score_run_files
    from .runs.show import looker  # slow to import

    return score_run_files(runs, qrels, looker(show, write_run))


def index_records(index: str, queries: Path, show: int | None, write_run: Path | None) -> list[dict]:
    """Return the records of an index, in each of its modes."""
    from .runs.index import load_index, score_index
    from .runs.show import looker  # slow to import

    ranker, task = load_index(index, queries)
    return score_index(ranker, task, looker(show, write_run, [task]))


def show_given(records: list[dict], target: Path | None) -> None:
    """Print the table of records and their paired differences, and write them to `target`."""
    typer.echo(format_records(records))
    if len(records) > 1:
        typer.echo(f"\n{format_differences(records)}")
    if target:
        write_results(target, records)
        typer.echo(f"written to {shown(target)}")


def settings_of(context: typer.Context) -> EvalConfig | None:
    """Return the settings of a run, from its configuration file or from the flags; None if it scores run files or an
    index."""
    flags = context.params
    given = {name for name in flags if context.get_parameter_source(name).name == "COMMANDLINE"}
    for whole in BESIDE.keys() & given:
        if ignored := ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given - BESIDE[whole])):
            raise ValueError(f"--{whole} names all that is scored; leave out {ignored}")
    for what, answers in (("run", "qrels"), ("index", "queries")):
        if flags[what] or flags[answers]:
            files = [*flags["run"], flags["qrels"], flags["queries"]]
            missing = [path for path in files if path and not path.is_file()]
            if missing or not (flags[what] and flags[answers]):
                together = f"--{what} and --{answers} go together; give both"
                raise ValueError(f"{missing[0]} is no file; name one that is there" if missing else together)
            return None
    if flags["config"] is not None:
        return EvalConfig.from_yaml(flags["config"])
    if not flags["encoder"]:
        raise ValueError("--encoder is missing; add --encoder bm25, or --encoder and the folder of a model")
    data = [flags["data"]]
    if flags["suite"] is not None:
        data = [str(folder) for folder in suite_folders(flags["suite"], flags["split"])]
    task = {name: flags[name] for name in ("split", "documents", "revision", "development_split")}
    distractors = {"path": flags["distractors"], "count": flags["distractor_count"]}
    distractors = {name: value for name, value in distractors.items() if value is not None}
    task |= {"names": flags["task"], "distractors": distractors or None}
    tasks = [{"data": each} | task for each in data]
    settings = {"tasks": tasks, "encoders": flags["encoder"], "policies": flags["policy"], "hybrids": flags["hybrid"]}
    return checked(EvalConfig, settings, "--data, --encoder and other flags")


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ValueError, before the work begins, if rankings cannot be written into a folder, or it has files."""
    check_writable(folder / "run", "write-run")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"write-run={folder} is not empty; choose another folder or pass --overwrite")


def without(earlier: list[dict], records: list[dict]) -> list[dict]:
    """Return the earlier records of other systems or data than those of `records`."""
    fields = ("kind", "system", "task", "split", "data_fingerprint")
    keys = {tuple(map(record.get, fields)) for record in records}
    return [record for record in earlier if tuple(map(record.get, fields)) not in keys]


@app.command("compare")
def compare_command(
    results: Annotated[list[Path], typer.Argument(help="JSON files of `m2bert eval`.")],
    against: Annotated[str | None, typer.Option(help="System to compare with; every pair by default.")] = None,
) -> None:
    """Compare systems by nDCG@10 on the same queries: paired bootstrap, 95 % intervals."""
    from .statistics import by_task

    groups = by_task(
        check_record(record, f"record {number} of {path}")
        for path in results
        for number, record in enumerate(read_results(path))
    )
    if not groups:
        raise ValueError("no retrieval scores in these files; `m2bert eval` writes them")
    for (task, split, fingerprint), group in groups.items():
        counted = f"{len(group[0]['query_scores'])} queries (fingerprint of task and split {fingerprint[:8]})"
        typer.echo(shown(f"{task}, {split}, {counted}"))
        typer.echo(format_differences(group, against))


def format_differences(records: list[dict], against: str | None = None) -> str:
    """Return an aligned table of differences between systems on one task, in points, with 95 % intervals."""
    from .statistics import align, differences

    rows = []
    for row in differences(records, against):
        low, high = (100 * bound for bound in row["interval_95"])
        star = "*" if row["beyond_chance"] else ""
        difference = f"{100 * row['difference']:+.1f}"
        rows.append([row["system"], row["other"], difference, f"{low:+.1f} to {high:+.1f}", star])
    return align(["system", "minus", "points", "95 % interval", ""], rows)


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
