"""What earlier starts of a kernel have learnt about checkpoints that end it: no process in here."""

from __future__ import annotations

from typing import Any

DEATHS_LIMIT = 3
"""Starts that one checkpoint may end before it is given up: one for each of two variables that
do so, and one for something that cannot be named."""

DEADLY = "a kernel has ended while it was being restored"


class Experience:
    """What earlier starts have learnt about checkpoints that end the kernel.

    Args:
        note: Content of the file; anything else than what was written counts as nothing.
        progress: Name of the variable at which the last start has stopped; empty if none has.
    """

    def __init__(self, note: dict[str, Any], progress: str) -> None:
        found = note.get("checkpoints")
        self._checkpoints: dict[str, dict[str, Any]] = {}
        for number, entry in found.items() if isinstance(found, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("skip"), list):
                deaths = entry.get("deaths")
                self._checkpoints[number] = {
                    "skip": [str(name) for name in entry["skip"]],
                    "deaths": deaths if isinstance(deaths, int) else 0,
                }
        died_at = note.get("trying")
        if isinstance(died_at, int):
            entry = self._entry(died_at)
            entry["deaths"] += 1
            if progress and progress not in entry["skip"]:
                entry["skip"].append(progress)
            elif entry["deaths"] > 1:
                entry["deaths"] = DEATHS_LIMIT

    def _entry(self, number: int) -> dict[str, Any]:
        return self._checkpoints.setdefault(str(number), {"skip": [], "deaths": 0})

    def given_up(self, number: int) -> bool:
        """Whether the checkpoint is not to be tried any more."""
        return bool(self._entry(number)["deaths"] >= DEATHS_LIMIT)

    def skip(self, number: int) -> dict[str, str]:
        """Names in the checkpoint of which no object may be made, with the reason."""
        return dict.fromkeys(self._entry(number)["skip"], DEADLY)

    def note(self, trying: int | None, kept: list[int]) -> dict[str, Any]:
        """What to write: that a checkpoint is being tried, and what is known of those there are."""
        numbers = {str(number) for number in kept}
        known = {
            number: entry
            for number, entry in self._checkpoints.items()
            if number in numbers and (entry["deaths"] or entry["skip"])
        }
        return {"trying": trying, "checkpoints": known}
