"""Name M2BertConfig at the root of the source; modeling_m2bert defines it, among the files that exports copy."""

from modeling_m2bert.configuration_m2bert import M2BertConfig

__all__ = ["M2BertConfig"]
