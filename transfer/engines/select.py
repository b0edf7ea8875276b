"""Which engine runs, and why."""

from __future__ import annotations

from runtime.errors import InputError
from transfer.engines.base import Engine

ENGINES = ("auto", "detectron2", "embedded")


def select_engine(name: str) -> tuple[Engine, str]:
    """The engine called ``name`` and the reason for taking it, in a few words.

    ``auto`` takes Detectron2 where it imports, else the embedded engine. InputError for an unknown
    name, or for ``detectron2`` where it does not import.
    """
    if name not in ENGINES:
        raise InputError(f"--engine {name!r} is not known: {', '.join(ENGINES)}")
    problem = None if name == "embedded" else _import_problem()
    if name == "detectron2" and problem:
        raise InputError(
            f"--engine detectron2, but Detectron2 does not import ({problem}): make detectron2, "
            "put a source tree on PYTHONPATH, or use --engine embedded"
        )
    if name != "embedded" and problem is None:
        from transfer.engines.detectron2.engine import Detectron2Engine

        return Detectron2Engine(), "asked for" if name == "detectron2" else "Detectron2 imports"
    from transfer.engines.embedded.engine import EmbeddedEngine

    return EmbeddedEngine(), (
        "asked for" if name == "embedded" else f"Detectron2 does not import: {problem}"
    )


def _import_problem() -> str | None:
    try:
        import detectron2.modeling  # noqa: F401
    except Exception as error:  # a broken build fails in many ways; the reason is reported
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
