import sys

import pytest

from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import accepted, construct, lookup

TABLE = {"counter": "collections:Counter", "ordered": "collections.OrderedDict"}


class Net:
    def __init__(self, width, depth=2, **rest):
        self.width, self.depth, self.rest = width, depth, rest


def strict(width, depth=2):
    return width, depth


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module of the user's into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path / f"{name}.py"

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(given, table=TABLE):
    with pytest.raises(UserError) as error:
        lookup(given, table, "model.encoder")
    assert str(error.value).startswith("model.encoder")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["counter", "ordered"])
def test_a_name_of_the_table_is_imported_when_it_is_looked_up(name):
    assert lookup(name, TABLE, "o").target.__module__ == "collections"
    assert lookup({"class_path": name, "init_args": {"a": 1}}, TABLE, "o").args == {"a": 1}


def test_a_class_path_is_found_in_the_current_folder(written):
    written("mine_found", "class Net: pass\n")
    choice = lookup("mine_found.Net", TABLE, "model.encoder")
    assert (choice.name, choice.target.__name__, choice.args) == ("mine_found.Net", "Net", {})
    assert lookup({"class_path": "mine_found:Net"}, {}, "model.encoder").target is choice.target


def test_an_unknown_name_is_told_the_nearest_of_its_own_table():
    assert "did you mean 'counter'?" in refusal("countr")
    assert "did you mean" not in refusal("transformer")
    assert "counter, ordered" in refusal("transformer")


def test_a_module_that_is_not_there_is_named():
    assert "there is no module 'mine_nowhere' (looked in the current folder" in refusal(
        "mine_nowhere.deeper.Net"
    )


def test_an_attribute_that_is_not_there_is_told_the_nearest(written):
    written("mine_typo", "class Decoupled: pass\n")
    assert "has no 'Decopled'; did you mean 'Decoupled'?" in refusal("mine_typo.Decopled")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import mine_is_missing_this\n", "ModuleNotFoundError: No module named"),
        ("x = 1\nimport json\njson.loads('{')\n", ":3 with JSONDecodeError"),
        ("x = 1\ndef (:\n", ":2 with SyntaxError"),
        ("raise RuntimeError('two\\nlines')\n", ":1 with RuntimeError: two lines"),
    ],
)
def test_a_module_that_fails_as_it_is_imported_says_its_own_error_and_line(written, text, said):
    path = written("mine_broken", text)
    message = refusal("mine_broken.Net")
    assert said in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"class_path": "counter", "width": 3},
            "{'class_path': 'counter', 'width': 3}, but must be a class_path, and its",
        ),
        ({"init_args": {}}, "{'init_args': {}}, but must be a class_path, and its"),
        ({"class_path": "counter", "init_args": [3]}, "init_args is [3]"),
        (3, "is 3, but must be a name"),
    ],
)
def test_a_mapping_of_another_form_is_refused(given, said):
    assert said in refusal(given)


def test_offered_arguments_are_those_that_the_signature_names_and_nobody_gave():
    offered = {"width": 1, "depth": 2, "image_size": 3}
    assert accepted(Net, offered, {"depth": 5}) == {"width": 1}


def test_a_choice_is_constructed_from_its_own_arguments_before_the_offered_ones():
    choice = lookup({"class_path": f"{__name__}.Net"}, {}, "o")._replace(target=Net)
    net = construct(choice._replace(args={"depth": 5, "more": 1}), "o", width=1, depth=2, size=3)
    assert (net.width, net.depth, net.rest) == (1, 5, {"more": 1})


def test_a_wrong_or_missing_argument_is_a_sentence():
    choice = lookup("counter", TABLE, "o")._replace(name="mine.strict", target=strict)
    with pytest.raises(UserError, match=r"takes no argument 'widht', but .*; did you mean 'width'"):
        construct(choice._replace(args={"widht": 1}), "model.encoder")
    with pytest.raises(UserError, match="needs the argument width: give"):
        construct(choice, "model.encoder", image_size=3)


def test_an_error_inside_a_constructor_is_a_sentence():
    def fails():
        return len(3)

    choice = lookup("counter", TABLE, "o")._replace(target=fails)
    with pytest.raises(UserError, match=r"o: counter fails with TypeError: .* has no len"):
        construct(choice, "o")
