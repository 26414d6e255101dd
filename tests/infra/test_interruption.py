"""Ctrl-C on a terminal, for a command that starts no Ray: status, one line, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.pipelines.terminal import ROOT, Terminal

HEAD = f"""
import sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from infra import interruption
from infra.errors import UserError, run
interruption.listen()
def forever():  # in short waits: a signal that comes just before a wait does not end it
    while True:
        time.sleep(0.02)
"""


def script(folder: Path, text: str) -> Terminal:
    file = folder / "script.py"
    file.write_text(HEAD + text)
    return Terminal([str(file)], cwd=folder, environment=os.environ, shell=True)


MAIN = """
def main():
    print("working", flush=True)
    forever()
run(main, "interrupted: 3 things are kept")
"""


def after(terminal: Terminal, line: str) -> list[str]:
    """What was printed after a line."""
    assert line in terminal.lines, terminal.text
    return terminal.lines[terminal.lines.index(line) + 1 :]


def test_the_first_ends_the_command_in_order(tmp_path: Path) -> None:
    with script(tmp_path, MAIN) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "working") == [
            "stopping (Ctrl-C again ends at once)",
            "interrupted: 3 things are kept",
        ]


def test_while_modules_are_imported_there_is_nothing_to_keep(tmp_path: Path) -> None:
    with script(tmp_path, 'print("importing", flush=True)\nforever()') as terminal:
        terminal.wait_for(r"importing\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "importing") == ["interrupted: nothing was started"]


SLOW_END = """
def main():
    try:
        print("working", flush=True)
        forever()
    finally:
        print("cleaning up", flush=True)
        forever()
run(main, "interrupted: 3 things are kept")
"""


def test_the_second_ends_it_at_once(tmp_path: Path) -> None:
    with script(tmp_path, SLOW_END) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        terminal.wait_for(r"cleaning up\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "cleaning up") == ["interrupted: 3 things are kept"]


BECAME = """
def main():
    try:
        print("working", flush=True)
        forever()
    except BaseException:
        raise {error} from None
run(main, "interrupted: 3 things are kept")
"""


@pytest.mark.parametrize("error", ["ImportError('half of a module')", "UserError('no Ray cluster')"])
def test_what_it_became_on_its_way_is_no_error(tmp_path: Path, error: str) -> None:
    with script(tmp_path, BECAME.format(error=error)) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "working")[-1] == "interrupted: 3 things are kept"
        assert "Traceback" not in terminal.text


LEFT_BEHIND = """
import atexit, logging, os
gone = threading.Event()
def left_behind():
    gone.wait()
    logging.getLogger("ray").error("no Ray")
    print("no Ray", flush=True)
    os.write(2, b"no Ray")
    raise RuntimeError("no Ray")
def main():
    thread = threading.Thread(target=left_behind, daemon=True)
    thread.start()
    atexit.register(lambda: (gone.set(), thread.join()))
    print("working", flush=True)
    forever()
run(main, "interrupted: 3 things are kept")
"""


def test_a_thread_that_loses_its_ray_at_the_end_tells_nothing(tmp_path: Path) -> None:
    with script(tmp_path, LEFT_BEHIND) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        assert terminal.ended() == 130
        assert terminal.lines[-1] == "interrupted: 3 things are kept"
        assert "no Ray" not in terminal.text


ASKING = """
import signal
def main():
    left = threading.Event()
    def stop():
        print("asked", flush=True)
        {then}
    with interruption.explained(lambda: "interrupted at step 7"):
        with interruption.asking(stop, signal.SIGINT):
            print("working", flush=True)
            while not left.wait(0.02):
                pass
        raise KeyboardInterrupt
run(main, "interrupted")
"""


@pytest.mark.parametrize("then", ["left.set(); return True", "return False"], ids=["waits", "leaves at once"])
def test_whoever_knows_a_better_way_to_stop_is_asked(tmp_path: Path, then: str) -> None:
    with script(tmp_path, ASKING.format(then=then)) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "working") == ["asked", "interrupted at step 7"]


def test_what_is_asked_has_its_say_before_the_end(tmp_path: Path) -> None:
    """The block may end before the function that ended it."""
    slowly = "left.set(); time.sleep(0.3); print('committing', flush=True); return True"
    with script(tmp_path, ASKING.format(then=slowly)) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "working") == ["asked", "committing", "interrupted at step 7"]


def test_the_second_does_not_wait_for_whoever_was_asked(tmp_path: Path) -> None:
    with script(tmp_path, ASKING.format(then="return True")) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        terminal.wait_for(r"asked\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "asked") == ["interrupted"]


def test_where_it_is_ignored_it_stays_ignored(tmp_path: Path) -> None:
    """As for a command that a script starts with `&`."""
    text = MAIN.replace("forever()", "time.sleep(0.3)")
    file = tmp_path / "script.py"
    file.write_text("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + HEAD + text)
    with Terminal([str(file)], cwd=tmp_path, environment=os.environ, shell=True) as terminal:
        terminal.wait_for(r"working\n")
        terminal.press()
        assert terminal.ended() == 0


@pytest.mark.parametrize("verb", ["train", "tune", "reproduce", "prepare", "predict", "evaluate", "register", "serve"])
def test_every_verb_answers_while_it_is_still_imported(tmp_path: Path, verb: str) -> None:
    """The first module that a verb imports of another distribution stops for ever."""
    (tmp_path / "rich").mkdir()
    for module in ("rich/__init__.py", "numpy.py"):
        (tmp_path / module).write_text(f"{HEAD}print('importing', flush=True)\nforever()\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with Terminal([str(ROOT / f"pipelines/{verb}.py")], cwd=tmp_path, environment=environment, shell=True) as terminal:
        terminal.wait_for(r"importing\n")
        terminal.press()
        assert terminal.ended() == 130
        assert after(terminal, "importing") == ["interrupted: nothing was started"]
