"""The doors: a name of a table, or a class path of the user's own, to the object that it names.

From Python a door takes the object itself, too. Tables hold paths, not objects, so that nothing is
imported before it is used. Every error is one sentence that names the option. Nothing but the given
name decides what is meant: near names are offered, and never taken.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from simclr_pl.core.errors import UserError, check, in_one_line

if TYPE_CHECKING:
    Door = Any
else:  # what files and command lines give, which their parser reads here
    Door = str | dict[str, Any]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Choice(NamedTuple):
    """What an option names.

    Attributes:
        name: the table's name, or the class path, as it was given.
        target: the class or function.
        args: keyword arguments for it (`init_args`).
    """

    name: str
    target: Any
    args: dict[str, Any]


def lookup(given: Door, table: Mapping[str, str], option: str) -> Choice:
    """Finds what an option names.

    Args:
        given: a name of the table, a class path such as `mine.losses.Decoupled`, or a mapping of
            `class_path` (either of the two) and optionally `init_args`; or an object.
        table: names, and the path of each: `module.attribute` or `module:attribute`.
        option: as the user writes it, for errors: `model.encoder`.

    Raises:
        UserError: an unknown name; a module or attribute that is not there or cannot be imported;
            a mapping of another form.
    """
    name, args = spelt_out(given, option)
    if not isinstance(name, str):
        return Choice(_path_of(name), name, args)
    if name in table:
        return Choice(name, _import(table[name], option), args)
    if not name.replace(":", ".").strip(".").count("."):
        known = f"there are {', '.join(table)}, or" if table else "there are no names:"
        own = f"{known} give the path of your own class (module.Class){_near(name, table)}"
        raise UserError(f"{option}: unknown name '{name}': {own}")
    return Choice(name, _import(name, option), args)


def name_of(given: Any) -> str:
    """What to call what an option gives: the table's name, the class path, or an object's class."""
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping) and "class_path" in given:
        return str(given["class_path"])
    return str(getattr(given, "__qualname__", type(given).__qualname__))


def accepted(
    target: Any, offered: Mapping[str, Any], given: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Those of the offered keyword arguments that `target`'s signature names and `given` lacks.

    What goes into a `**kwargs` is not guessed: such a parameter is offered nothing.
    """
    names = {p.name for p in _parameters(target) if p.kind in _NAMED}
    return {key: value for key, value in offered.items() if key in names and key not in given}


def construct(choice: Choice, option: str, **offered: Any) -> Any:
    """Calls a choice with its own arguments, and those of the offered ones that it names.

    Raises:
        UserError: an argument that it doesn't take, or one that it needs and hasn't got.
    """
    arguments = accepted(choice.target, offered, choice.args) | choice.args
    parameters = _parameters(choice.target)
    named = {p.name: p.default for p in parameters if p.kind in _NAMED}
    any_name = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
    for key in [] if any_name or not parameters else arguments.keys() - named:
        takes = f"takes no argument '{key}', but {', '.join(named)}{_near(key, named)}"
        raise UserError(f"{option}: {choice.name} {takes}")
    for key in [key for key, default in named.items() if default is inspect.Parameter.empty]:
        if key not in arguments:
            needs = f"needs the argument {key}: give {option}.init_args.{key}"
            raise UserError(f"{option}: {choice.name} {needs}")
    try:
        return choice.target(**arguments)
    except UserError:
        raise
    except Exception as error:  # somebody's own code raises anything
        raise UserError(f"{option}: {choice.name} fails with {in_one_line(error)}") from error


def check_call(call: Any, count: int, name: str, wanted: str) -> None:
    """Whether something can be called with so many arguments by place.

    Args:
        call: what is to be called.
        count: of arguments.
        name: what to call it in the error.
        wanted: how it is going to be called, in words.

    Raises:
        UserError: it can't.
    """
    try:
        inspect.signature(call).bind(*[None] * count)
    except ValueError:  # built in: nothing says how
        return
    except TypeError as error:
        raise UserError(f"{name} cannot be called as {wanted}: {error}") from error


def is_class_path(given: Door) -> bool:
    """Whether that names a class or function of some module, which is not imported here.

    A name with a dot in it is no class path where it begins with no module's name: some of timm's
    models have such names.
    """
    name = given.get("class_path") if isinstance(given, Mapping) else given
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*([.:][^\W\d]\w*)+", name):
        return False
    _look_in_this_folder()
    module = re.split("[.:]", name)[0]
    # (A script's own module, `__main__`, has no specification to find.)
    return module in sys.modules or importlib.util.find_spec(module) is not None


def written(given: Door, option: str) -> str | dict[str, Any]:
    """What a recipe holds of a door: an object is known by the path of its class.

    Raises:
        UserError: as `spelt_out`.
    """
    name, args = spelt_out(given, option)
    path = name if isinstance(name, str) else _path_of(name)
    return {"class_path": path, "init_args": args} if args else path


def spelt_out(given: Door, option: str) -> tuple[Any, dict[str, Any]]:
    """A door's name, class path or object, and the arguments that were given with it.

    Raises:
        UserError: a mapping of another form than `class_path` and `init_args`.
    """
    form = "a name, a class path, or a mapping of class_path and init_args"
    check(not isinstance(given, int | float | list | tuple | None), option, given, form)
    if not isinstance(given, Mapping):
        return given, {}
    name, args = given.get("class_path"), given.get("init_args") or {}
    fits = name is not None and given.keys() <= {"class_path", "init_args"}
    check(fits, option, dict(given), "a class_path, and its arguments below init_args alone")
    check(isinstance(args, Mapping), f"{option}.init_args", args, "a mapping of arguments")
    return name, dict(args)


def _path_of(given: Any) -> str:
    kind = given if isinstance(given, type) or inspect.isroutine(given) else type(given)
    return f"{kind.__module__}.{kind.__qualname__}"


def _import(path: str, option: str) -> Any:
    module, _, attribute = path.rpartition(":" if ":" in path else ".")
    _look_in_this_folder()
    try:
        found = importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:
        absent = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        said = f"importing '{module}' fails at {_place(error)} with {in_one_line(error)}"
        if absent and f"{module}.".startswith(f"{absent}."):
            looked = "looked in the current folder and the installed packages"
            said = f"there is no module '{absent}' ({looked})"
        raise UserError(f"{option}: {said}") from error
    if not hasattr(found, attribute):
        near = _near(attribute, [name for name in vars(found) if not name.startswith("_")])
        raise UserError(f"{option}: the module '{module}' has no '{attribute}'{near}")
    return getattr(found, attribute)


def _look_in_this_folder() -> None:
    """Installed, the program begins in another folder than `python -m` does."""
    if not {"", os.getcwd()} & set(sys.path):  # noqa: PTH109 - a string of sys.path
        sys.path.append(os.getcwd())  # noqa: PTH109


def _place(error: Exception) -> str:
    """The line of the user's own code, if any of it was running, that an import failed at."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[0] != "<"]
    libraries = tuple(sysconfig.get_paths().values())
    last = ([f for f in frames if not f.filename.startswith(libraries)] or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _parameters(target: Any) -> list[inspect.Parameter]:
    """Of a class or function; none for one that cannot say."""
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return []


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else ""
