"""What handler.py refuses, how it says so, and that nothing of it stays."""

import json
import logging

import pytest
import torch

from m2bert.hub.folder import write_folder
from m2bert.hub.handler import EndpointHandler
from m2bert.hub.sentence_files import SentenceSettings
from modeling_m2bert import M2BertModel

TEXTS = ["a budget", "minutes of the meeting about a report " * 9, "", "the"]


@pytest.fixture
def load(tmp_path, tiny_config, randomised, tokenizer):
    """The handler of a small model's folder."""

    def make(settings=None):
        model = randomised(M2BertModel(tiny_config()))
        return EndpointHandler(str(write_folder(model, tokenizer, tmp_path / "model", settings=settings)))

    return make


BAD = {
    "no object": ('["a"]', "body is of type list; send a JSON object"),
    "a string": ('"inputs"', "body is of type str"),
    "no inputs": ("{}", "inputs is missing or null; send a text or a list"),
    "null": ('{"inputs": null}', "inputs is missing or null"),
    "a number": ('{"inputs": 3}', "inputs is of type int; send a text"),
    "an object": ('{"inputs": {"text": "a"}}', "inputs is of type dict"),
    "no texts": ('{"inputs": []}', "inputs holds 0 texts; send 1 to 2048"),
    "too many": (json.dumps({"inputs": ["a"] * 2049}), "inputs holds 2049 texts; send 1 to 2048"),
    "a list of lists": ('{"inputs": ["a", ["b"]]}', r"inputs\[1\] is of type list; send every text as a string"),
    "a null": ('{"inputs": ["a", "b", null]}', r"inputs\[2\] is missing or null"),
    "too long": (json.dumps({"inputs": ["x" * 2_000_001] * 2}), "4000002 characters; send at most 4000000"),
    "half a pair": ('{"inputs": ["a", "b \\ud83d"]}', r"inputs\[1\] holds half of a surrogate pair"),
    "an option beside": ('{"inputs": "a", "task": "query"}', "body has 'task'; .* inside \"parameters\""),
    "no parameters": ('{"inputs": "a", "parameters": null}', "parameters is missing or null; send a JSON object"),
    "a parameter": ('{"inputs": "a", "parameters": {"pooling": 1}}', "has 'pooling'; choose from: task, policy, norm"),
    "a task": ('{"inputs": "a", "parameters": {"task": "q"}}', "task='q' is unknown; choose from: document, query"),
    "a policy": ('{"inputs": "a", "parameters": {"policy": ["x"]}}', "policy=.* choose from: truncate, chunk-average"),
    "a one": ('{"inputs": "a", "parameters": {"normalize": 1}}', "normalize=1 is unknown; choose from: true, false"),
    "a word": ('{"inputs": "a", "parameters": {"normalize": "false"}}', "normalize='false' is unknown"),
    "a long value": (json.dumps({"inputs": "a", "parameters": {"task": "\udc80" * 999}}), "task='.{39}... is unknown"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_the_fix(case):
    body, message = BAD[case]
    handler = EndpointHandler.__new__(EndpointHandler)  # no model: nothing is tokenized before all is checked
    with pytest.raises(ValueError, match=message) as caught:
        handler(json.loads(body))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text.encode()) < 200


def test_a_refused_or_failed_request_changes_no_later_answer(load, monkeypatch):
    handler = load()
    before = handler({"inputs": TEXTS})
    for body, _ in BAD.values():
        with pytest.raises(ValueError, match=";"):
            handler(json.loads(body))

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(handler.model, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            handler({"inputs": TEXTS, "parameters": {"policy": "chunk-average"}})
    handler({"inputs": TEXTS[1], "parameters": {"policy": "chunk-average", "normalize": False, "task": "query"}})
    assert handler({"inputs": TEXTS}) == before


def test_a_prompt_that_leaves_no_room_is_named(load):
    handler = load(SentenceSettings({"document": "a " * 20}, max_tokens=20))
    with pytest.raises(ValueError, match="the prompt fills max_tokens=20"):
        handler({"inputs": "the report", "parameters": {"policy": "chunk-average"}})


def test_numbers_that_json_does_not_know_are_refused(load):
    handler = load()
    with torch.no_grad():
        handler.model[0].auto_model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        handler({"inputs": "a report"})


def test_texts_are_not_logged(load, caplog, capfd):
    handler = load()
    with caplog.at_level(logging.DEBUG):
        for policy in ("truncate", "chunk-average"):
            handler({"inputs": ["qqqq", "qqqq " * 100], "parameters": {"policy": policy}})
    assert "qqqq" not in caplog.text + "".join(capfd.readouterr())
