"""Stand in for `m2bert_train`, `m2bert_eval` and `m2bert_hub`, the names of these packages before version 0.1."""

raise ImportError(f"{__name__} has another name now: import {__name__.replace('_', '.', 1)}", name=__name__)
