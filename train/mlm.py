"""Masked-language-model pretraining (paper section 4.2).

    m2bert train mlm [--processes N] [--config FILE] [--dry-run] [key=value ...]
    python train/mlm.py [--config FILE] [--dry-run] [key=value ...]

Without arguments it trains a small model on pydocs, offline, in about a minute.
"""

import sys

from m2bert.train.cli import app

if __name__ == "__main__":
    app(["mlm", *sys.argv[1:]])
