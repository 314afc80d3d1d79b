"""`m2bert eval`: score encoders on a retrieval task.

Another typer app mounts it with `other.command("eval")(eval_command)`. By itself:

    python -m m2bert_eval.cli --encoder bm25 --data data/pydocs --task pydocs --output results.json
"""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from .atomic import write_atomically

app = typer.Typer(add_completion=False)


@app.command("eval")
def eval_command(
    encoder: Annotated[
        list[str], typer.Option(help="bm25, tfidf-rp[:WIDTH], a model folder or a Hub id; repeat for more.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of queries/SPLIT.parquet and documents/SPLIT.parquet.")],
    task: Annotated[str, typer.Option(help="The value of the column `dataset`, such as pydocs.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    policy: Annotated[str, typer.Option(help="What happens to a text that is too long.")] = "truncate",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Score encoders on a retrieval task: nDCG@10 with 95 % intervals, written as JSON."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from .evaluate_task import check_encoders, evaluate_encoders  # slow imports, not for --help
    from .locov1 import load_task

    try:
        if output.exists() and not overwrite:
            raise ValueError(f"output {output} exists; choose another file or pass --overwrite")
        check_encoders(encoder, policy)
        records = evaluate_encoders(encoder, load_task(data, task, split), policy)
    except ValueError as error:
        typer.echo(f"m2bert eval: {error}", err=True)
        raise typer.Exit(2) from error
    text = json.dumps({"results": records}, indent=2) + "\n"
    write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))
    typer.echo(format_table(records))
    typer.echo(f"written to {output}")


def format_table(records: list[dict]) -> str:
    """An aligned table, scores in points (x100)."""
    rows = [("encoder", "nDCG@10", "95 % interval", "truncated", "seconds")]
    for record in records:
        low, high = record["interval_95"]
        truncated = f"{record['counts']['truncated_documents']}/{record['counts']['documents']}"
        score = f"{100 * record['ndcg_at_10']:.2f}"
        interval = f"{100 * low:.2f} to {100 * high:.2f}"
        rows.append((record["encoder"], score, interval, truncated, f"{record['seconds']:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *numbers in rows:
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


if __name__ == "__main__":
    app()
