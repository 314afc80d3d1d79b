"""The metric's page: paste predictions and references, read nDCG@k.

`evaluate` brings a widget for this, but it calls parts of gradio that version 4 removed, and it offers no `k`.
"""

import json
from pathlib import Path

import gradio
from evaluate.utils import parse_readme
from ndcg import NDCG

PREDICTIONS = [{"query_id": "q1", "doc_ids": ["d1", "d2", "d3"], "scores": [0.2, 0.9, 0.4]}]
REFERENCES = [{"query_id": "q1", "doc_ids": ["d1", "d2"], "relevance": [2, 1]}]

metric = NDCG(keep_in_memory=True)


def compute(predictions: str, references: str, k: float) -> dict:
    """Return the metric's result, with the value of each query. Bad input is shown as the metric words it."""
    try:
        tables = {"predictions": json.loads(predictions), "references": json.loads(references)}
        return metric.compute(**tables, k=int(k), per_query=True)
    except (ValueError, TypeError, KeyError) as error:  # KeyError: a row lacks a column
        raise gradio.Error(f"{type(error).__name__}: {error}") from error


page = gradio.Interface(
    fn=compute,
    inputs=[
        gradio.Code(json.dumps(PREDICTIONS, indent=1), language="json", label="predictions"),
        gradio.Code(json.dumps(REFERENCES, indent=1), language="json", label="references"),
        gradio.Number(10, precision=0, minimum=1, label="k"),
    ],
    outputs=gradio.JSON(label="result"),
    title="nDCG@k",
    description=metric.description,
    article=parse_readme(str(Path(__file__).with_name("README.md"))),
    flagging_mode="never",
    api_name="compute",
)

if __name__ == "__main__":
    page.launch()
