"""The metric's folder as a Space: its card's metadata, and that nothing in it needs this package."""

from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "metrics" / "ndcg"


def metadata() -> dict:
    _, front, _ = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)


def test_the_card_has_what_a_space_of_evaluate_needs():
    card = metadata()
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "description"} <= card.keys()
    assert card["sdk"] == "gradio"
    assert card["pinned"] is False
    assert set(card["tags"]) == {"evaluate", "metric"}
    assert (FOLDER / card["app_file"]).is_file()


def test_the_cards_example_gives_what_it_says(tmp_path):
    import evaluate

    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    call = code[code.index("ndcg.compute(") :]
    metric = evaluate.load(str(FOLDER), experiment_id="card", keep_in_memory=True, cache_dir=str(tmp_path))
    result = eval(call, {"ndcg": metric})
    shown = text.split("gives `")[1].split("`")[0]
    assert f"{result['ndcg_at_10']:.4f}"[:6] in shown
    assert f"{result['per_query']['q1']:.4f}"[:6] in shown
