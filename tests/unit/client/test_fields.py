"""The light dataclasses are dataclasses: what the type checker promises holds, and the real module's functions work."""

import dataclasses
from dataclasses import FrozenInstanceError

import pytest

from chasqui_client.fields import dataclass, field, replace


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 2
    notes: list[str] = field(default_factory=list)


@dataclass
class Loose:
    x: int = 1


def test_fields_by_position_and_by_name() -> None:
    point = Point(1, notes=["a"])
    assert (point.x, point.y, point.notes) == (1, 2, ["a"])
    assert point == Point(x=1, y=2, notes=["a"])
    assert point != Point(2, notes=["a"])
    assert point != (1, 2, ["a"])
    assert repr(point) == "Point(x=1, y=2, notes=['a'])"
    assert Point(1).notes is not Point(1).notes


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_wrong_fields_are_a_type_error(values: tuple, named: dict) -> None:
    with pytest.raises(TypeError):
        Point(*values, **named)


def test_frozen_is_frozen_and_loose_is_not() -> None:
    with pytest.raises(AttributeError, match="x can't be changed"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del Point(1).x
    assert issubclass(FrozenInstanceError, AttributeError)  # what callers of a real one may catch
    loose = Loose()
    loose.x = 5
    assert loose == Loose(5)
    assert hash(Point(1, 2, notes=())) == hash(Point(1, 2, notes=()))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        hash(loose)


def test_the_real_module_takes_them_for_its_own() -> None:
    point = Point(1, notes=["a"])
    assert dataclasses.is_dataclass(point)
    assert [(f.name, f.default) for f in dataclasses.fields(point)][:2] == [("x", dataclasses.MISSING), ("y", 2)]
    assert dataclasses.asdict(point) == {"x": 1, "y": 2, "notes": ["a"]}
    assert dataclasses.replace(point, y=3) == replace(point, y=3) == Point(1, 3, ["a"])
    match point:
        case Point(1, y):
            assert y == 2
        case _:
            pytest.fail("no match")
