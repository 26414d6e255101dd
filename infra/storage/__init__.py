"""Object storage by URI: one small interface over a local folder and S3.

    store = open_store("s3://bucket/prefix")        # or "/data/shards", "file:///data/shards", "runs/demo"
    store.write("manifest.json", data, if_absent=True)

Both stores give the same guarantees. An object appears whole or not at all. ``if_absent`` has exactly one winner among
concurrent writers. The data of a ``write`` that has returned survives a crash. Endpoint and credentials come from the
environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …; boto3's own chain). A store does not hold them, so a
pickled store is a few bytes.
"""

from infra.storage.local import LocalStore
from infra.storage.open import environment_of_s3, open_store, pyarrow_filesystem
from infra.storage.store import Store

__all__ = ["LocalStore", "Store", "environment_of_s3", "open_store", "pyarrow_filesystem"]
