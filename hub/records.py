"""What a card reads of the records of how a model was made. They may be foreign: a checkpoint brings them along."""

from typing import Any

from m2bert.schema import FOREIGN, Schema


class Similarity(Schema):
    """Of texts of one length: cosine of their vectors with padding visible and masked."""

    tokens: int
    texts: int
    mean: float
    lowest: float


class Masked(Schema):
    """What masked padding does to a converted model's vectors."""

    text: str
    cosine: list[Similarity]


class Parity(Schema):
    """Largest differences to the original, by output."""

    model_config = FOREIGN

    reference: str
    texts: int
    tokens: int
    float64: dict[str, float]
    float32: dict[str, float]


class Tensors(Schema):
    """The account of a source's tensors."""

    model_config = FOREIGN

    total: int


class Options(Schema):
    """The original's options, by where they come from."""

    model_config = FOREIGN

    assumed: dict[str, Any]


class Conversion(Schema):
    """conversion.json."""

    model_config = FOREIGN

    source: str
    revision: str | None
    license: str | None
    files: dict[str, str]
    tensors: Tensors
    options: Options
    parity: Parity
    masked: Masked | None
    date: str


class Training(Schema):
    """training.json."""

    model_config = FOREIGN

    config: dict[str, Any] | None = None
    data_fingerprint: str | None = None
    versions: dict[str, str] = {}


KINDS = {"training": Training, "conversion": Conversion}
