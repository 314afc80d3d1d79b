"""Fine-tuning for retrieval (paper section 4.3).

    m2bert train opl [--processes N] [--config FILE] [--dry-run] [key=value ...]
    python train/opl.py [--config FILE] [--dry-run] [key=value ...]

Without arguments it fine-tunes a small new model on pydocs, offline, in about two minutes; `model.path` names a
checkpoint of train/mlm.py to start from.
"""

import sys

from m2bert.train.cli import app

if __name__ == "__main__":
    app(["opl", *sys.argv[1:]])
