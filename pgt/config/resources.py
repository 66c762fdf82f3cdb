"""The files that are no code: conf/ of the package, folders of the user's own beside it, and the published numbers."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pgt.core.errors import InputError, one_line

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Sources:
    """The files that configs are composed of, besides those of conf/.

    Attributes:
        own: folders of the user's own, searched after conf/.
        primary: the config that composition starts from: conf/train.yaml, or a file in one of the user's folders.
    """

    own: tuple[Path, ...] = ()
    primary: str = "train"


_sources = Sources()


def sources() -> Sources:
    """The files that this process composes configs of at the moment (see `own_conf`)."""
    return _sources


@contextmanager
def own_conf(folders: Sequence[str] = (), primary: str | None = None) -> Iterator[None]:
    """A context in which groups also have the choices that are files in folders of the user's own.

    Modules in these folders and in the current one can be imported in it.

    Args:
        folders: as in Hydra's `--config-dir` and `hydra.searchpath`: a path, `file://PATH` or `pkg://package.folder`.
        primary: as in Hydra's `--config-name`.

    Raises:
        InputError: a folder or the primary config is not there, or a file has the name of one of conf/, which Hydra
            would silently prefer.
    """
    global _sources
    before, path = _sources, list(sys.path)
    try:
        _make_importable(Path.cwd())
        _add(folders)
        if primary:
            _sources = Sources(_sources.own, primary.removesuffix(".yaml"))
            file = _file(_sources.primary)
            if file is None:
                raise InputError(f"--config-name {primary}: there is no {_sources.primary}.yaml in {_listed_folders()}")
            _add(_searched_by(file))
        yield
    finally:
        _sources, sys.path[:] = before, path


def _searched_by(file: Path) -> list[str]:
    """The folders in `hydra.searchpath` of a primary config, resolved.

    Raises:
        InputError: it is no list, or cannot be resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    settings = read_file(file).get("hydra")
    found = settings.get("searchpath", []) if isinstance(settings, dict) else []
    if not isinstance(found, list):
        raise InputError(f"{file}: hydra.searchpath must be a list, as in [file://DIR]; it is {found}")
    try:
        return [str(folder) for folder in OmegaConf.create(found)]
    except OmegaConfBaseException as error:
        raise InputError(f"{file}: hydra.searchpath cannot be resolved: {one_line(error)}") from None


def _add(folders: Sequence[str]) -> None:
    """Search these folders of the user's own, too."""
    global _sources
    added = [folder for folder in map(_own_folder, folders) if folder not in (conf_dir(), *_sources.own)]
    for folder in added:
        _refuse_doubles(folder)
        _make_importable(folder)
    _sources = Sources((*_sources.own, *added), _sources.primary)


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _refuse_doubles(folder: Path) -> None:
    """Refuse a folder if one of its files has the name of one of conf/, those of Hydra's groups included."""
    for file in sorted(conf_dir().rglob("*.yaml")):
        double = folder / file.relative_to(conf_dir())
        if double.is_file():
            raise InputError(f"{double} has the name of a file of pgt's own: rename it")


def _own_folder(entry: str) -> Path:
    scheme, _, name = entry.rpartition("://")
    places = [Path(name).absolute()]
    if scheme == "pkg":
        package, *inner = name.replace("/", ".").split(".")
        found = find_spec(package) if package else None
        places = [Path(place, *inner) for place in (found and found.submodule_search_locations) or ()]
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"there is no folder {name}: --config-dir DIR or hydra.searchpath=[DIR] names folders of configs")


def search_path() -> tuple[Path, list[Path]]:
    """The folder that has the primary config, and the others."""
    first = next(folder for folder in _folders() if (folder / f"{_sources.primary}.yaml").is_file())
    return first, [folder for folder in _folders() if folder != first]


def conf_dir() -> Path:
    """The folder of the Hydra groups."""
    return repository_folder("conf")


def repository_folder(name: str) -> Path:
    """A folder of the repository: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / Path(name).name
    return inside if inside.is_dir() else PACKAGE.parent / name


def groups() -> list[str]:
    """The names of the Hydra groups that a run is made of."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")


def is_group(name: str) -> bool:
    """Whether there is a Hydra group of that name, other than Hydra's own."""
    if not name or "." in name or name.startswith(("/", "hydra/")):
        return False
    return any((folder / name).is_dir() for folder in _folders())


def is_choice(group: str, name: str) -> bool:
    """Whether a group has a choice of that name."""
    return _file(f"{group}/{name}") is not None


def choices(group: str) -> list[str]:
    """The names of a group's choices, folders included: `demo/bn` of `experiment`. `all` is none: it lists others."""
    return sorted({name for folder in _folders() for name in _names(folder, group) if Path(name).name != "all"})


def is_folder(group: str, name: str) -> bool:
    """Whether some choices of a group stand in a folder of that name."""
    return any(choice.startswith(f"{name}/") for choice in choices(group))


def conf_file(name: str) -> Path:
    """The file of a choice such as `recipe/paper`."""
    found = _file(name)
    if found is None:
        raise InputError(f"there is no {name}.yaml in {_listed_folders()}")
    return found


def read_conf(name: str) -> dict[str, Any]:
    """The values in the file of a choice such as `recipe/paper`, unresolved and without its defaults list.

    Raises:
        InputError: there is no such file, or it is no YAML, or no mapping.
    """
    return {key: value for key, value in read_file(conf_file(name)).items() if key != "defaults"}


def read_file(file: Path) -> dict[str, Any]:
    """The contents of a config file, unresolved.

    Raises:
        InputError: the file is no YAML, or no mapping, or begins with a byte-order mark.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if file.read_bytes().startswith(codecs.BOM_UTF8):  # Hydra would not see `# @package` behind it
            raise InputError(f"{file} begins with a byte-order mark: save it as UTF-8 without one")
        values = OmegaConf.to_container(OmegaConf.load(file))
    except yaml.YAMLError as error:
        raise not_yaml(error) from None
    except (UnicodeDecodeError, OSError, OmegaConfBaseException) as error:  # OSError: the file is a single number
        raise InputError(f"{file} cannot be read as a mapping of keys: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} must be a mapping, `key: value` in each line; it is a list")
    return {str(key): value for key, value in values.items()}


def not_yaml(error: Exception) -> InputError:
    """PyYAML's error in one line, with file, line and column."""
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a config"
    return InputError(f"{place}: this is not valid YAML: {getattr(error, 'problem', None) or error}")


def header(file: Path) -> str:
    """The first comment at the top of a config file that is not for Hydra; empty if there is none."""
    for line in file.read_text("utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if text := line.strip("# "):
            if not text.startswith("@package"):
                return text
    return ""


def is_global(file: Path) -> bool:
    """Whether a config file begins with `# @package _global_`.

    Hydra reads such lines until the first one that is not `# @...`, and does not see it behind another comment.
    """
    return re.match(r"\s*(#\s*@.*\n\s*)*?#\s*@package +_global_\s", file.read_text("utf-8") + "\n") is not None


def _folders() -> tuple[Path, ...]:
    return (conf_dir(), *_sources.own)


def _listed_folders() -> str:
    return " or ".join(map(str, _folders()))


def _file(name: str) -> Path | None:
    files = (folder / f"{name}.yaml" for folder in _folders())
    return next((file for file in files if file.is_file()), None)


def _names(folder: Path, group: str) -> Iterator[str]:
    top = folder / group
    return (path.relative_to(top).with_suffix("").as_posix() for path in top.rglob("*.yaml") if path.is_file())
