"""M2BertConfig under the name that users of the source look for; defined beside the model, where it ships from."""

from modeling_m2bert.configuration_m2bert import M2BertConfig

__all__ = ["M2BertConfig"]
