"""Writes the table of settings in docs/configuration.md from the configuration's own docstrings.

python scripts/settings_table.py            write it
python scripts/settings_table.py --check    fail when it is not what would be written
"""

import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sagebroker.config import BrokerConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- settings: begin -->"
END = "<!-- settings: end -->"
COMPUTED = {
    "state_dir": "`~/.local/state/sagebroker`",
    "runtime_dir": "`/run/sagebroker` for root, else `$XDG_RUNTIME_DIR/sagebroker` or `/tmp/sagebroker-UID`",
    "kernel.concurrent_starts": "half the cores, 1 to 3",
}
"""Defaults that depend on the machine."""
UNITS = ((2**30, "GiB"), (2**20, "MiB"))


def default_of(path: str, field: FieldInfo) -> str:
    if path in COMPUTED:
        return COMPUTED[path]
    value = field.default
    if path.endswith("_bytes"):
        for size, unit in UNITS:
            if value % size == 0:
                return f"{value} ({value // size} {unit})"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else "empty"


def rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    """One row a setting, branches after their own heading."""
    plain, branches = [], []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            branches += rows(kind, f"{path}.")
            continue
        meaning = " ".join((field.description or "").split())
        variable = "SAGEBROKER_" + path.upper().replace(".", "__")
        plain.append(f"| `{path}` | `{variable}` | {default_of(path, field)} | {meaning} |")
    return plain + branches


def main() -> int:
    table = "\n".join(
        ["| setting | environment | default | meaning |", "|---|---|---|---|", *rows(BrokerConfig)]
    )
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if page != wanted:
            print("docs/configuration.md is out of date: run python scripts/settings_table.py")
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
