"""Plots of the paper's analyses: Figures 2, 3, 5 and 6, and Table 5 as curves."""

from .blocks import Plot
from .plots import COLOURS, INK, MARKERS, as_plot, figure, plain_number


def needle_plot(title: str, records: list[dict], printed: dict[str, float]) -> Plot:
    """Figure 2: nDCG@10 by the answer's place, with 95 % intervals.

    Args:
        printed: {place: points}, the paper's curve for comparison; may be empty.
    """
    with figure(4.4) as (made, axes):
        for index, record in enumerate(records):
            rows = sorted(record["rows"], key=lambda entry: entry["position"])
            places = [entry["position"] for entry in rows]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                places, [100 * entry["ndcg_at_10"] for entry in rows], color=colour, label=record["system"],
                marker=MARKERS[index % len(MARKERS)], markersize=4,
            )  # fmt: skip
            known = [entry for entry in rows if entry.get("interval_95")]
            low, high = ([100 * entry["interval_95"][side] for entry in known] for side in (0, 1))
            axes.fill_between([entry["position"] for entry in known], low, high, color=colour, alpha=0.15, linewidth=0)
        if printed:
            axes.plot(
                [int(place) for place in printed], list(printed.values()), color=INK, linestyle="--", linewidth=1.2,
                label="M2-BERT-32k in the paper (Natural Questions)",
            )  # fmt: skip
        axes.set_ylim(0, 102)
        axes.set_xlabel("passages before the one that answers")
        axes.set_ylabel("nDCG@10 (points)")
        made.legend(loc="outside lower left", ncols=2, fontsize=8)
        return as_plot(f"needle {title}", made, f"{title}. Shaded: 95 % intervals over queries.")


def length_plot(records: list[dict]) -> Plot:
    """Figures 5 and 6: how the documents of each task spread over lengths, one strip a task."""
    strips = sorted(records, key=lambda record: record["documents"]["median_tokens"])
    with figure(0.75 * len(strips) + 1.3) as (made, axes):
        for index, record in enumerate(strips):
            histogram = record["documents"]["histogram"]
            top = max(histogram["counts"], default=0) or 1
            edges = [max(edge, 1) for edge in histogram["edges"]]  # zero has no place on a logarithmic axis
            heights = [index + 0.85 * count / top for count in histogram["counts"]]
            colour = COLOURS[index % len(COLOURS)]
            axes.stairs(heights, edges, baseline=index, fill=True, color=colour, alpha=0.75)
            median = record["documents"]["median_tokens"]
            axes.plot([median, median], [index, index + 0.9], color=INK, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(plain_number)
        axes.tick_params(axis="x", labelrotation=30)
        axes.set_xlim(left=min(map(_shortest, strips)) / 2)
        axes.set_yticks(range(len(strips)), [f"{record['task']}, {record['split']}" for record in strips])
        axes.set_xlabel("tokens of a document (logarithmic)")
        caption = "Lengths of documents. Each strip has its own height; the upright line is the median."
        return as_plot("lengths", made, caption)


def _shortest(record: dict) -> float:
    """The lower edge of the first length that occurs, 2 at least."""
    histogram = record["documents"]["histogram"]
    occurring = (edge for edge, count in zip(histogram["edges"], histogram["counts"], strict=False) if count)
    return max(2, next(occurring, 2))


def efficiency_plot(machine: str, records: list[dict]) -> Plot:
    """Table 5 as curves: seconds to encode by tokens, both logarithmic."""
    with figure(4.4) as (made, axes):
        for index, record in enumerate(records):
            rows = sorted(record["rows"], key=lambda entry: entry["tokens"])
            axes.plot(
                [entry["tokens"] for entry in rows], [entry["encode_seconds"] for entry in rows],
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], markersize=5,
                label=record["system"],
            )  # fmt: skip
        lengths = sorted({entry["tokens"] for record in records for entry in record["rows"]})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.set_xlabel("tokens (logarithmic)")
        axes.set_ylabel("seconds to encode (logarithmic)")
        made.legend(loc="outside lower left", ncols=2, fontsize=8)
        return as_plot(f"efficiency {machine}", made, f"Seconds to encode one text on {machine}, without tokenising.")


def cluster_plot(record: dict) -> Plot:
    """Figure 3: each text a point, coloured by where it comes from."""
    names = list(record["sources"])
    with figure(5.2) as (made, axes):
        for index, name in enumerate(names):
            points = [point for point in record["points"] if point[2] == index]
            axes.scatter(
                [point[0] for point in points], [point[1] for point in points], s=18, label=name,
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], linewidths=0,
            )  # fmt: skip
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        made.legend(loc="outside right upper", fontsize=8)
        return as_plot(
            f"clusters {record['system']}", made, f"{record['system']}: t-SNE of its vectors, a point a text."
        )
