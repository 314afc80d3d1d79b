"""Training of the vectors of stretches toward those of a teacher.

    m2bert train align [--processes N] [--config FILE] [--dry-run] [key=value ...]
    python train/align.py [--config FILE] [--dry-run] [key=value ...]

`loss.teacher` names the teacher; configs/align-small.yaml holds every key.
"""

import sys

from m2bert.train.cli import app

if __name__ == "__main__":
    app(["align", *sys.argv[1:]])
