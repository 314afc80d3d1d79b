from typing import NamedTuple


class Passage(NamedTuple):
    start: int
    end: int
    score: float


def best_passage(query, vector, text, vectors, spans, encoder):
    i = int((vectors @ vector).argmax())
    return Passage(int(spans[i][0]), int(spans[i][1]), 0.0)
