"""The passage of a document that is shown for a query: chosen by words and vectors together."""

import re

import numpy as np

PASSAGE_WORDS = 80  # at most
WORD_CHARS = 15  # that count as a word where there are fewer spaces
LONGEST_SENTENCE_CHARS = 600  # a table, code or a text without full stops is cut there
STRETCHES = 8  # of a long document that are read: so many that are best by vector, and so many by words
WIDTHS = 0.5, 1, 2, 4  # of the windows around a passage in which words count, in lengths of a passage
NEAR_WEIGHT = 0.5  # of the late chunks' cosines next to BM25, both standardized
K1, B = 1.5, 0.75  # of BM25, as in bm25s
SENTENCE = re.compile(r"\S.*?(?:[.!?:][\"')\]]*(?=\s)|[。！？]|(?=\n[ \t]*\n)|\Z)", re.DOTALL)
PIECE = re.compile(rf"\S.{{0,{LONGEST_SENTENCE_CHARS - 1}}}(?!\w)|\S.{{0,{LONGEST_SENTENCE_CHARS - 1}}}", re.DOTALL)
WORD = re.compile(r"[^\W_]{2,}")


def best_passage(
    query: str, query_vector: np.ndarray, text: str, vectors: np.ndarray, spans: np.ndarray
) -> tuple[int, int]:
    """Return the characters [start, end) of the passage, some sentences long, that answers a query best.

    Every sentence begins a passage of up to PASSAGE_WORDS words. Passages are scored by BM25, whose document
    frequencies are counts of the document's sentences, and by the cosines of the late chunks around them. Of a long
    document only the stretches are read that are best by vector or by words.

    Args:
        query_vector: (d,).
        vectors: (n, d) of the document, with their `spans` (n, 2), as `Encoder.encode_documents` gives them.
    """
    lowered = text.lower() if len(text.lower()) == len(text) else text  # a few letters become two
    asked = sorted(set(WORD.findall(query.lower())))
    cosines = vectors.astype(np.float32) @ query_vector
    sentences, lasts, before = _passages(text, _stretches(lowered, asked, cosines, spans))
    if not len(sentences):
        return 0, 0
    starts, ends = sentences[:, 0], sentences[lasts, 1]
    order = np.argsort(spans.sum(axis=1), kind="stable")
    near = np.interp((starts + ends) / 2, spans[order].mean(axis=1), cosines[order])
    scores = _standardized(_bm25(lowered, asked, sentences, lasts, before)) + NEAR_WEIGHT * _standardized(near)
    return int(starts[scores.argmax()]), int(ends[scores.argmax()])


def _stretches(lowered: str, asked: list[str], cosines: np.ndarray, spans: np.ndarray) -> list[tuple[int, int]]:
    """Return the characters [start, end) to read, in order and apart: spans of late chunks, joined where they meet."""
    chosen = np.arange(len(spans))
    if len(spans) > 2 * STRETCHES:
        has = np.array([[word in lowered[start:end] for word in asked] for start, end in spans])  # (n, words)
        by_words = has @ np.log((1 + len(spans)) / (0.5 + has.sum(axis=0)))
        by_vector = np.argsort(-cosines, kind="stable")[:STRETCHES]
        chosen = np.union1d(by_vector, np.argsort(-by_words, kind="stable")[:STRETCHES])
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans[chosen].tolist()):
        if joined and start <= joined[-1][1]:
            start, end = joined[-1][0], max(joined.pop()[1], end)
        joined.append((start, end))
    return joined


def _passages(text: str, stretches: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sentences (n, 2) of stretches of a text; of each the last one of the passage that it begins; and the
    number of words before each sentence, (n + 1,)."""
    sentences, stretch_of, counts = [], [], []
    for number, stretch in enumerate(stretches):
        for match in SENTENCE.finditer(text, *stretch):
            short = len(match.group()) <= LONGEST_SENTENCE_CHARS
            for piece in [match] if short else PIECE.finditer(text, *match.span()):
                start, end = piece.span()
                sentences.append((start, end))
                stretch_of.append(number)
                counts.append(max(len(text[start:end].split()), (end - start) // WORD_CHARS))
    before = np.append(0, np.cumsum(counts, dtype=np.int64))
    firsts = np.arange(len(sentences))
    lasts = np.maximum(np.searchsorted(before, before[:-1] + PASSAGE_WORDS, side="right") - 2, firsts)
    lasts = np.minimum(lasts, np.searchsorted(stretch_of, stretch_of, side="right") - 1)
    return np.array(sentences, dtype=np.int64).reshape(-1, 2), lasts, before


def _bm25(lowered: str, asked: list[str], sentences: np.ndarray, lasts: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return BM25 (n,) of passages: the sum over windows of several WIDTHS around each, with idf by sentences."""
    numbers = {word: number for number, word in enumerate(asked)}
    counts = np.zeros((len(asked), len(sentences) + 1))
    for place, (start, end) in enumerate(sentences.tolist(), start=1):
        for word in WORD.findall(lowered, start, end):
            if word in numbers:
                counts[numbers[word], place] += 1
    having = (counts > 0).sum(axis=1)
    idf = np.log(1 + (len(sentences) - having + 0.5) / (having + 0.5))[:, None]
    up_to, total = counts.cumsum(axis=1), np.zeros(len(sentences))
    middles, first, last = (before[:-1] + before[1:]) / 2, before[:-1], before[lasts + 1]  # in words
    for width in WIDTHS:
        more = (width - 1) / 2 * (last - first)
        starts = np.minimum(np.searchsorted(middles, first - more), len(sentences) - 1)
        ends = np.maximum(np.searchsorted(middles, last + more, side="right"), starts + 1)
        found, words = up_to[:, ends] - up_to[:, starts], before[ends] - before[starts]
        total += (idf * found * (K1 + 1) / (found + K1 * (1 - B + B * words / words.mean()))).sum(axis=0)
    return total


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1.0)
