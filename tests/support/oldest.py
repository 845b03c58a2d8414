"""Print pip constraints that pin every bound of pyproject.toml, `name>=version`, to that version.

python tests/support/oldest.py > constraints.txt
"""

import pathlib
import re
import tomllib

PYPROJECT = pathlib.Path(__file__).parents[2] / "pyproject.toml"


def constraints(text: str) -> list[str]:
    """Return `name==version` for the lower bound of every dependency, extras and groups included.

    Raises:
      ValueError: a dependency has no lower bound, or two different ones.
    """
    read = tomllib.loads(text)
    project, groups = read["project"], read.get("dependency-groups", {})
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    found: dict[str, str] = {}
    for requirement in (line for lines in lists for line in lines if isinstance(line, str)):
        matched = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9][0-9a-z.]*).*", requirement)
        if matched is None:
            raise ValueError(
                f"pyproject.toml: {requirement!r} has no lower bound; wanted name>=version"
            )
        name, version = matched.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(
                f"pyproject.toml: {name} has two bounds, {found[name]} and {version}; wanted one"
            )
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(constraints(PYPROJECT.read_text())))
