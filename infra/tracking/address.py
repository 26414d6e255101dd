"""The address of an MLflow deployment: escaped for SQLAlchemy, checked, and reached within seconds.

MLflow retries an unreachable address for minutes, and describes each attempt on stderr. So callers use `check_address`
and `reach` before they connect.
"""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from infra.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import URL

_TIMEOUT_S = 5.0
_REASON_CHARS = 400
_BUSY = ("too many", "Too many", "locked")  # words of PostgreSQL, MySQL and SQLite
_SQLITE = "sqlite:///"
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # supported by MLflow, with or without a driver
_LEFT_TO_MLFLOW = ("databricks", "databricks-uc", "uc")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_LIMITS = {"postgresql": {"connect_timeout": 5}, "mysql": {"connect_timeout": 5}, "mssql": {"timeout": 5}}
_REMEDY = "start it, correct MLFLOW_TRACKING_URI, or unset it to use a local database"


def sqlite_uri(file: Path) -> str:
    """Return the URI of a SQLite database; `?` and `%` mean something else in a URI and are escaped."""
    return f"{_SQLITE}{str(file).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database, or None if the URI names something else."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])) if uri.startswith(_SQLITE) else None


def scheme_of(uri: str) -> str:
    """Return the part before `://` without a driver, such as `http`, `sqlite` or `postgresql`; "" without one."""
    return uri.partition("://")[0].partition("+")[0].lower() if "://" in uri else ""


def is_server(uri: str) -> bool:
    """Return whether the URI names an MLflow server, not a database."""
    return scheme_of(uri) in _SERVERS


def check_address(uri: str) -> None:
    """Refuse a URI that names neither a server nor a database, before MLflow uses it.

    Raises:
        UserError: the URI names neither, or is malformed.
    """
    scheme = scheme_of(uri)
    shown = redact(uri)
    expected = "expected http://HOST:PORT, https://HOST, or a database such as sqlite:////home/me/mlflow.db"
    if scheme == "file" or (not scheme and uri.startswith((".", "/", "~"))):
        database = Path(unquote(uri.removeprefix("file://")), "mlflow.db")
        hint = f"give a database instead: MLFLOW_TRACKING_URI={sqlite_uri(database.expanduser().absolute())}"
        raise UserError(f"MLFLOW_TRACKING_URI is {shown}, a folder, and MLflow no longer keeps runs in folders: {hint}")
    if scheme not in (*_SERVERS, *_DATABASES) and uri not in _LEFT_TO_MLFLOW and scheme not in _LEFT_TO_MLFLOW:
        meant = f"; did you mean http://{shown}?" if re.fullmatch(r"[\w.-]+(:\d+)?/?", uri) else ""
        raise UserError(f"MLFLOW_TRACKING_URI is {shown}: {expected}{meant}")
    if scheme in (*_SERVERS, *_PORTS):
        try:
            parts = urlsplit(uri)
            found = bool(parts.hostname or scheme in _PORTS) and parts.port is not False
        except ValueError:  # a port that is not a number, or an unclosed bracket
            found = False
        if not found:
            raise UserError(f"MLFLOW_TRACKING_URI is {shown}, which has no valid host and port: {expected}")
    if scheme == "sqlite" and (not uri.startswith(_SQLITE) or sqlite_file(uri) in (Path(), Path(":memory:"))):
        raise UserError(f"MLFLOW_TRACKING_URI is {shown}, which names no file: {expected}")


def reach(uri: str) -> None:
    """Ask a server or a database for one answer, within seconds.

    Raises:
        UserError: nothing answers, or a database cannot be opened.
    """
    if is_server(uri):
        _reach_server(uri)
    elif (scheme := scheme_of(uri)) in _DATABASES:
        _reach_database(uri, scheme)


def reason(error: BaseException) -> str:
    """Return the first line of an exception, short and without credentials."""
    lines = str(error).strip().splitlines()
    text = redact(lines[0] if lines else type(error).__name__)
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS].rsplit(maxsplit=1)[0]} …"


def redact(text: str) -> str:
    """Return `text` without the user and password of any URI in it."""
    return re.sub(r"://[^/\s@]+@", "://", text)


def _reach_server(uri: str) -> None:
    """Send one request with a short timeout: MLflow's client has only one timeout, which must allow large uploads."""
    shown = redact(uri).rstrip("/")
    try:
        urllib.request.urlopen(f"{shown}/health", timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # the server answers; the next request shows whether it accepts us
    except (OSError, ValueError, HTTPException) as error:
        why = reason(getattr(error, "reason", None) or error)
        raise UserError(f"no MLflow server answers at {shown} ({why}): {_REMEDY}") from error


def _reach_database(uri: str, scheme: str) -> None:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    file = sqlite_file(uri)
    if file is not None:
        make_folder(file.parent)
    try:
        url = sqlalchemy.make_url(uri)
        if url.host:
            _check_port(url, scheme)
        limits = _CONNECT_LIMITS.get(scheme, {})
        engine = sqlalchemy.create_engine(url, connect_args=limits, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            if file is not None:
                connection.exec_driver_sql("PRAGMA schema_version")  # reads the file, which a mere connection does not
    except ImportError as error:
        package = error.name or "a driver"
        raise UserError(f"MLflow's database at {redact(uri)} needs the Python package {package}: install it") from error
    except (OSError, ValueError, SQLAlchemyError) as error:
        if any(sign in str(error) for sign in _BUSY):
            return  # the database answers; MLflow retries
        if file is not None:
            raise UserError(f"MLflow at {uri} refuses: {reason(error)}: expected a database of MLflow's") from error
        raise UserError(f"no MLflow database answers at {redact(uri)} ({reason(error)}): {_REMEDY}") from error


def _check_port(url: URL, scheme: str) -> None:
    """Open and close a connection to the port: a host that drops packets would block a database driver for minutes."""
    socket.create_connection((str(url.host), url.port or _PORTS[scheme]), _TIMEOUT_S).close()


def make_folder(folder: Path) -> None:
    """Make the folder of a SQLite database; raise UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot keep MLflow's database in {folder}: {error.strerror}") from error


def remove_stray_folder(uri: str) -> None:
    """Remove the empty folder that MLflow makes for a SQLite file because it does not unescape the path."""
    file = sqlite_file(uri)
    taken = Path(uri.removeprefix(_SQLITE)).parent
    if file is not None and taken != file.parent:
        with suppress(OSError):
            taken.rmdir()
