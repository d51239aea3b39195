"""`purify-engine`: the verbs, the configuration file, and the exit codes.

0 all is well · 1 internal error · 2 usage or configuration · 3 finished, some items failed · 4 every item or a check failed ·
5 out of space or input/output · 130, 143 stopped by a signal.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml
from cyclopts.exceptions import UnusedCliTokensError

from purify_engine import __version__
from purify_engine.cli.stopping import Stopped, stop_at_once
from purify_engine.cli.streams import print_escaped_errors, printable, robust_streams
from purify_engine.cli.threads import wait_without_spinning
from purify_engine.config import require
from purify_engine.foreign import NotInstalledError

USAGE, INPUT_OUTPUT, INTERRUPTED = 2, 5, 130
VERBS = ("demo", "purify", "verify", "evaluate", "report", "convert", "train", "bench", "doctor")


def application(words: Sequence[str] = ()) -> App:
    """The verbs as one command line; of those, the one that `words` begin with is imported alone, since each takes its time.

    Made anew for each run: a configuration file, which has a table a verb, changes it.
    """
    app = App(
        name="purify-engine",
        version=__version__,
        help="Wash adversarial perturbations out of images by guided diffusion, and measure honestly what that defends.",
    )
    is_clear = words and words[0] in VERBS and not any(word.startswith("--config") for word in words)
    for verb in words[:1] if is_clear else VERBS:
        app.command(_training() if verb == "train" else getattr(import_module(f"purify_engine.cli.{verb}"), verb))

    @app.meta.default
    def launch(
        *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[Path | None, Parameter(help="TOML file of options, one table a verb; the command line wins.")] = None,
    ) -> Any:
        if config is not None:
            app.config = (_options_in(config),)
        return call(app, words)

    return app.meta


def _options_in(path: Path) -> Toml:
    require(path.is_file(), "config", "an existing TOML file", str(path))
    toml = Toml(path)
    try:
        toml.config  # noqa: B018 (reads it, which nothing that is wrong in it may do without its name)
    except CycloptsError as broken:
        raise ValueError(f"config must be a TOML file, got {str(path)!r}: {broken}") from broken
    return toml


def _training() -> App:
    from purify_engine.cli import train

    training = App(name="train", help="Train a purifier: diffusion model, guide and a classifier to protect.")
    networks = (train.diffusion, train.trades, train.classifier)
    for job in (train.recipe, train.purifier, *networks, train.assemble, train.pack, train.digits):
        training.command(job)
    return training


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run a verb, say every user's error in one line, and exit with the code that tells what happened.

    Without `words` this process is the command, and is set up as one.
    """
    if words is None:
        print_escaped_errors()
        wait_without_spinning()
    with robust_streams():
        sys.exit(_ended(sys.argv[1:] if words is None else words))


def _ended(words: Sequence[str]) -> int:
    """The exit code, once what is to be said of it has been said."""
    before = signal.signal(signal.SIGTERM, stop_at_once)
    try:
        return call(application(words), words) or 0
    except Stopped as stopped:
        return _failed(stopped.said, stopped.code)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except UnusedCliTokensError as wrong:
        words = " ".join(wrong.unused_tokens or ())
        return _failed(f"too many words: {words!r}. An option that takes several wants its name before each (--x 1 --x 2)", USAGE)
    except (CycloptsError, ValueError, FileNotFoundError, FloatingPointError) as wrong:
        return _failed(str(wrong), USAGE)
    except ImportError as missing:
        if missing.name and not isinstance(missing, NotInstalledError):  # Python's own, so a fault of ours
            raise
        return _failed(str(missing), USAGE)
    except OSError as failed:
        named = failed.strerror and failed.filename
        return _failed(f"{failed.strerror}: {failed.filename}" if named else str(failed), INPUT_OUTPUT)
    finally:
        signal.signal(signal.SIGTERM, before)


def call(target: App, words: Sequence[str]) -> Any:
    """What the verb returns; every error is raised, none printed."""
    return target(words, exit_on_error=False, print_error=False, result_action="return_value")


def _failed(message: str, code: Any) -> int:
    print(f"purify-engine: {printable(' '.join(message.split()))}", file=sys.stderr)
    return int(code)
