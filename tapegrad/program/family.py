"""The paths captured for arguments of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tapegrad import errors
from tapegrad.program.capture import Capture
from tapegrad.program.environment import Environment
from tapegrad.program.program import Program
from tapegrad.program.signature import Structure, Template, settings_of

if TYPE_CHECKING:
    from tapegrad.program._compile import Compiled


class Family:
    """The paths captured for arguments of one signature, as long as what the function refers to stays the same.

    Args:
        structure: of the arguments.
        leaves: of such arguments.
        watched: the function whose names are looked after.
        others: objects whose attributes are looked after too.

    Attributes:
        programs: the one used last first.
        template: the arguments without data.
        settings: those that are no data.
        environment: what the function refers to outside of itself.
        derivatives: compiled derivatives of calls, by what they are derivatives of.
        misses: how often no path captured so far was the right one.
        runs: how often one was.
        unsettled: how many captures in a row changed what the function refers to.
        eager: the line that looks at values which differ at nearly every call: the function runs eagerly.
    """

    def __init__(self, structure: Structure, leaves: Sequence[Any], watched: Any, others: Sequence[Any]) -> None:
        self.programs: list[Program] = []
        self.structure, self.template = structure, Template(leaves)
        self.settings = [*others, *settings_of(leaves)]
        self._watched = watched
        self.environment = Environment(watched, self.settings)
        self.derivatives: dict[Any, Compiled] = {}
        self.misses = self.runs = self.unsettled = 0
        self.eager = ""

    def check_environment(self, capture: Capture) -> None:
        """Refuse what a captured function did to what it refers to, since no run repeats it; once it may, such as to fill a cache.

        Raises:
            RuntimeError: naming what was changed, and where.
        """
        for source in self.environment.advanced():
            raise RuntimeError(errors.COMPILE_SOURCE.format(source.name, _where(source.line)))
        changed = list(self.environment.changed())
        for name, line, value in changed:
            if capture.keeps(value):
                raise RuntimeError(errors.COMPILE_KEPT.format(name, _where(line)))
        self.unsettled = self.unsettled + 1 if changed else 0
        if self.unsettled > 1:
            name, line, _ = changed[0]
            raise RuntimeError(errors.COMPILE_STATE.format(name, _where(line)))
        if changed:
            self.environment = Environment(self._watched, self.settings)

    def give_up(self) -> None:
        """Have the function run eagerly from now on."""
        lines = [g.line for p in self.programs for g in p.guards]
        self.eager = max(set(lines), key=lines.count, default="a guard") or "a guard"
        self.programs.clear()


def _where(line: str) -> str:
    return f" ({line})" if line else ""
