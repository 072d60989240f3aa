"""vlnotes: the small library that the notebooks graduate into.

Reading order, floor by floor: `world`, `contrastive`, `momentum`, `text`, `records`; then `datasets`, `encoders`,
`metrics`; then one file a paper (`clip`, ...); then `train`, `plots`; on top `experiment`, `checks`, `environment` and
the command line (`python -m vlnotes check`). A file imports only from the floors below it.
"""

import os

# Waiting threads should sleep, not spin: beside any other busy program a training step is otherwise many times slower.
# It takes effect only where torch has not been imported yet; whoever has set it keeps their choice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
