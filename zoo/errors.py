"""Every error that the zoo raises for a user's mistake or a damaged file.

ZooError
├── UnknownNameError    a model, task, method, recipe or backbone that nobody registered
├── ConfigError         a registry or recipe that cannot be read as written; lists every problem at once
├── OptionError         an argument out of its range
│   └── MissingExtraError   something that needs a package which is not installed
├── WeightsError        a missing, damaged or mismatched weights file
├── DataError           a dataset folder or image that is not as it should be
├── TrainingError       a training that cannot go on
├── ExportError         a graph that could not be written or that disagrees with its source
└── CheckFailed         a verification that ran and found a difference

The message says what is wrong, with the value, and what to do about it.
"""

import contextlib
from collections.abc import Iterable, Iterator


class ZooError(Exception):
    """Base of all errors below; the command line prints it without a traceback, and exits with `exit_status`."""

    exit_status = 1  # 1: something failed, 2: it was asked for wrongly


class UnknownNameError(ZooError, LookupError):
    """A name that nothing is registered under; the message lists the nearest ones."""

    exit_status = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        import difflib  # here, and not above: it is slow to import, and errors are rare

        self.kind, self.name, known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            advice = "Did you mean " + " or ".join(near) + "?"
        elif known:
            shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
            advice = f"Known: {shown}."
        else:
            advice = "None is known."
        super().__init__(" ".join(filter(None, [f"Unknown {kind} {name!r}.", advice, hint])))


class ConfigError(ZooError, ValueError):
    """A registry or recipe with problems, all of them listed."""

    exit_status = 2

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([f"{where}:", *(f"  - {problem}" for problem in self.problems)]))


class OptionError(ZooError, ValueError):
    """An argument out of its range."""

    exit_status = 2


class WeightsError(ZooError):
    """A weights file that is missing, damaged, or made for something else."""


class DataError(ZooError):
    """A dataset folder or an image that is not as it should be."""


class TrainingError(ZooError):
    """A training that cannot go on."""


class ExportError(ZooError):
    """An export that could not be written, or that disagrees with its source."""


class CheckFailed(ZooError):
    """A verification that ran to its end and found a difference."""


class MissingExtraError(OptionError):
    """Something that needs a package which the core of the zoo does without."""


def sentence(error: BaseException) -> str:
    """What an error of another library says first; the page that some have is for its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around the import of what belongs to the extra `name` of pyproject.toml.

    Args:
        what: needs it, such as "The figure of edges".

    Raises:
        MissingExtraError: it is not installed, or broken; the message has the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package == "zoo":
            raise
        state = "is not installed here" if isinstance(error, ModuleNotFoundError) else f"does not import here ({error})"
        raise MissingExtraError(f"{what} needs {package}, which {state}: pip install 'ftn-zoo[{name}]'.") from error
