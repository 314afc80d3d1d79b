"""Masked-language-model pretraining (paper section 4.2).

    m2bert train mlm [--processes N] [--config FILE] [--dry-run] [key=value ...]
    python train/mlm.py [--config FILE] [--dry-run] [key=value ...]

Without arguments it trains a small model on pydocs, offline, in about a minute.
"""

from m2bert.train.cli import command_line

if __name__ == "__main__":
    command_line("mlm", __doc__)
