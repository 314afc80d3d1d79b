"""The commands `m2bert index`, `search`, `embed` and `serve`."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from m2bert.records import free_output
from m2bert.terminal import CommandGroup, several, shown

from .index import VECTORS, Index, Mode, model_name
from .table import M_ARENA_MAX, heap

FIRST = 5  # failures for one reason that are shown; more are counted

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[str | None, typer.Option(help="Model folder or Hub id; by default the one that made the index.")]
Folder = Annotated[str, typer.Option("--index", help="Folder of the index, or an address such as s3://bucket/name.")]
PassageVectors = Annotated[
    int | None, typer.Option(min=1, help="The most vectors of a window of the model's length; by default 16.")
]


@app.command()
def index(
    folder: Folder,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")] = [],  # noqa: B006
    model: Model = None,
    vectors: PassageVectors = None,
    sync: Annotated[bool, typer.Option("--sync", help="Also remove documents whose file is gone.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show tokens, time and disk space, and stop.")] = False,
    info: Annotated[bool, typer.Option("--info", help="Show what the index holds.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Show pairs of near-duplicates.")] = False,
    delete: Annotated[str | None, typer.Option(help='Delete what a filter selects, such as "year < 2000".')] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Embed all texts anew by --model.")] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Embed on a Ray cluster: HOST:PORT, auto or local.")
    ] = None,
):
    """Index files: add new ones, embed changed ones anew, leave the others."""
    actions = {"PATHS": bool(paths), "--info": info, "--duplicates": duplicates, "--delete": bool(delete),
               "--rebuild": rebuild}  # fmt: skip
    if sum(actions.values()) != 1:
        raise ValueError(f"say one thing to do: {', '.join(actions)}")
    if (sync or plan or ray) and not paths:
        raise ValueError("--sync, --plan and --ray need PATHS; give files or folders")
    if plan and (sync or ray):
        raise ValueError("--plan measures this machine and what there is; leave --sync and --ray out")
    if rebuild and model is None:
        raise ValueError("--rebuild needs --model; name the model that embeds from now on")
    heap("mallopt", M_ARENA_MAX, 1)  # each thread of LanceDB would keep what it has freed: 0.6 GB for 100,000 documents
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} does not exist; give files and folders that do")
    if ray:
        from .distributed import ClusterIndex

        opened = ClusterIndex.open(folder, model, vectors, ray=ray)
    else:
        opened = Index.open(folder, None if rebuild else model, vectors)
    if paths and plan:
        from .plan import make_plan

        numbers, failures = make_plan(opened, paths)
        typer.echo("\n".join([*_lines(numbers), *format_failures(failures)]))
    elif paths:
        report = opened.add(paths, sync=sync)
        counts = (f"{getattr(report, name):,} {name}" for name in ("added", "updated", "unchanged", "removed"))
        typer.echo(f"documents: {', '.join(counts)}; {report.tokens:,} tokens embedded")
        if report.left_out:
            typer.echo(f"{several(report.left_out, 'hidden or repeated file')} left out")
        typer.echo("".join(f"{line}\n" for line in format_failures(report.failures)), nl=False)
        if report.failures:
            raise typer.Exit(1)
    elif info:
        typer.echo("\n".join(_lines(opened.info())))
    elif duplicates:
        found = opened.duplicates()
        for first, second, share in found:
            typer.echo(f"{share:.2f}  {shown(first)}  {shown(second)}")
        typer.echo(f"{several(len(found), 'pair')} of near-duplicates")
    elif delete:
        typer.echo(f"{several(opened.delete(filter=delete), 'document')} deleted")
    else:
        typer.echo(f"{several(opened.rebuild(model), 'document')} embedded anew")


def _lines(values: dict[str, object]) -> Iterator[str]:
    for name, value in values.items():
        plain = ", ".join(value) if isinstance(value, list) else value if isinstance(value, str) else f"{value:,}"
        yield f"{name}: {shown(plain)}"


def format_failures(failures: list[tuple[str, str]]) -> list[str]:
    """Return a line for each file that is not in the index; of many for one reason for the first, and a count.

    Reasons are alike up to their first punctuation mark, before the fix; `line 3:` before it is a place.
    """
    alike, lines = defaultdict(list), [f"{len(failures):,} cannot be added:"] * bool(failures)
    for name, reason in failures:
        kind = re.split("[:;(]", re.sub(r"^(after )?line \d+[:,]? ", "", reason))[0].strip()
        alike[kind].append(f"  {shown(name)}: {shown(reason)}")
    for kind, its in alike.items():
        lines += its[:FIRST]
        lines += [f"  and {len(its) - FIRST:,} more: {shown(kind)}"] * (len(its) > FIRST)
    return lines


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What you look for, in words or as a question.")],
    folder: Folder,
    limit: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 5,
    mode: Annotated[Mode, typer.Option(help="Words and vectors together, or one of them.")] = "hybrid",
    filter: Annotated[str | None, typer.Option(help='SQL over metadata, such as "year > 2020".')] = None,
    weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the vectors in a hybrid; standardized scores without.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a document a line.")] = False,
):
    """Search an index; print the best passage of every document."""
    hits = Index.open(folder).search(query, limit, mode, filter, weight)
    for rank, hit in enumerate(hits, 1):
        if as_json:
            typer.echo(json.dumps(hit._asdict(), ensure_ascii=False))
            continue
        place = f"page {hit.page}" if hit.page else f"{hit.start / max(hit.length, 1):.0%} into it"
        typer.echo(f"{rank}. {shown(hit.id)}, {place}, score {hit.score:.2f}")
        typer.echo(f"     {shown(' '.join(hit.passage.split()))}\n")
    if not hits and not as_json:
        typer.echo("nothing found")


@app.command()
def embed(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=".jsonl or .parquet with id and text.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write: id, start, end, vector; a row a vector.")],
    model: Annotated[str, typer.Option(help="Model folder or Hub id.")],
    vectors: PassageVectors = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
):
    """Embed documents for a store of your own."""
    from .embed import embed_file

    if output.suffix != ".parquet":
        raise ValueError(f"output={output} is no Parquet file; name one that ends in .parquet")
    documents, rows = embed_file(file, free_output(output, overwrite), model_name(model), vectors or VECTORS)
    typer.echo(f"{several(documents, 'document')}, {several(rows, 'vector')}, written to {shown(output)}")


@app.command()
def serve(
    path: Annotated[str, typer.Argument(help="Model folder or Hub id, or an index.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key clients must send.")
    ] = None,
):
    """Serve embeddings (OpenAI's and TEI's interface), search, and a page for it."""
    from .server import serve

    serve(path, host, port, api_key_env)
