"""The old name of `preprocessing`, for versions that were registered before 2026-12.

Their metadata names this module. A process that has this project on its path may import it from here, not from the
copy inside the version.
"""

from pipelines.serving.preprocessing import Preprocessing as Pictures
from pipelines.serving.preprocessing import Refused

__all__ = ["Pictures", "Refused"]
