"""Print the networks as a table, with the published figures: python -m resnet_core"""

from __future__ import annotations

import sys

from resnet_core.models.table import comparisons, render

if __name__ == "__main__":
    sys.stdout.write(render(comparisons()))
