"""Turn labelled images into a data set: `python pipelines/prepare.py SOURCE DEST [--set prepare.key=value …]`.

SOURCE is a folder, s3://bucket/prefix or file of one of the kinds that `--help` lists (docs/data-sources.md), or the
word mnist5k. DEST is a folder or s3://bucket/prefix. After an interruption, the same command resumes; once the data set
is finished, it does nothing and says so.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()


from infra.storage import open_store
from pipelines import cli
from pipelines.cli.progress_bars import PrepareBar
from pipelines.config import paths
from pipelines.config.recipe import parse_overrides, prepare_config
from pipelines.data.prepare.prepare import clear_progress, find_prepared, prepare
from pipelines.data.prepare.sources import EXPECTS, open_source
from pipelines.data.prepare.sources.mnist5k import MNIST5K
from pipelines.training.summary import summarise_data_set


def main() -> None:
    arguments = _parser().parse_args()
    config = prepare_config(parse_overrides(arguments.settings))
    store = open_store(arguments.dest)
    store.check_access(write=True)
    source = open_source(
        arguments.source,
        holdout=config.holdout,
        validation=config.validation,
        seed=config.seed,
        keep=store,
        columns=config,
    )
    console = cli.console()
    manifest = find_prepared(source, store, config)
    if manifest is not None:
        clear_progress(store)
        console.print(f"{store.description} is already prepared: nothing to do")
    else:
        console.print(f"preparing {source.description}")
        from infra.cluster import connect

        connect(min_cpus=1)
        with PrepareBar(console) as bar:
            manifest = prepare(source, store, config, bar.show)
        if bar.rate:
            console.print(f"wrote at {bar.rate}")
    summarise_data_set(console, store, manifest, arguments.dest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write the images of SOURCE as shards and a manifest to DEST.",
        epilog=f"SOURCE holds one of: {EXPECTS}. Archives are read as they are.",
    )
    text = f"folder, s3://bucket/prefix, file, or the word {MNIST5K}"
    source = partial(paths.origin, words=(MNIST5K,))
    parser.add_argument("source", metavar="SOURCE", type=source, help=text)
    parser.add_argument("dest", metavar="DEST", type=paths.destination, help="folder or s3://bucket/prefix")
    cli.add_set(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
