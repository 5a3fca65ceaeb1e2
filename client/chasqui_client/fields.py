"""Dataclasses without `dataclasses`: importing it, with `inspect`, and having it write code costs a sync a fifth of its
time. The type checker sees the real ones, and `dataclasses.replace`, `asdict` and `fields` take these for theirs.
"""

TYPE_CHECKING = False  # typing is not needed for anything here
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    class _Made:
        """A default that is made anew for each instance."""

        def __init__(self, factory):
            self.factory = factory

    def field(*, default_factory):
        """A field whose default is what `default_factory` returns."""
        return _Made(default_factory)

    def replace(instance, **changes):
        """A copy with some fields changed."""
        return type(instance)(**{**vars(instance), **changes})

    def dataclass(made=None, *, frozen=False):
        """The decorator: fields from annotations, in order; `__init__`, `__eq__`, `__repr__`, and frozen or not."""
        if made is None:
            return lambda cls: dataclass(cls, frozen=frozen)
        names = tuple(made.__annotations__)
        defaults = {name: vars(made)[name] for name in names if name in vars(made)}
        for name, default in defaults.items():
            if isinstance(default, _Made):
                delattr(made, name)
        made.__init__ = _initializer(made.__name__, names, defaults)
        made.__match_args__ = names
        made.__dataclass_fields__ = _Fields(names, defaults)
        made.__eq__ = lambda self, other: vars(self) == vars(other) if type(other) is type(self) else NotImplemented
        made.__hash__ = (lambda self: hash(tuple(vars(self).values()))) if frozen else None
        made.__repr__ = lambda self: "%s(%s)" % (
            type(self).__qualname__, ", ".join("%s=%r" % item for item in vars(self).items()))
        if frozen:
            made.__setattr__ = made.__delattr__ = _refuse
        return made

    def _initializer(title, names, defaults):
        known = frozenset(names)

        def __init__(self, *values, **named):  # noqa: N807
            if len(values) == len(names) and not named:  # a row of the ledger
                self.__dict__.update(zip(names, values, strict=True))
                return
            given = dict(zip(names, values, strict=False))
            if len(values) > len(names) or not known.issuperset(named) or not named.keys().isdisjoint(given):
                raise TypeError("%s takes %s, each once" % (title, ", ".join(names)))
            given.update(named)
            for name in names:
                if name in given:
                    value = given[name]
                elif name in defaults:
                    value = defaults[name]
                    value = value.factory() if isinstance(value, _Made) else value
                else:
                    raise TypeError("%s needs %s" % (title, name))
                self.__dict__[name] = value

        return __init__

    def _refuse(self, name, *_):
        raise AttributeError("%s is frozen: %s can't be changed" % (type(self).__name__, name))

    class _Fields:
        """What `dataclasses` itself would have recorded, made when somebody asks for it."""

        def __init__(self, names, defaults):
            self.names, self.defaults = names, defaults

        def __get__(self, instance, owner):
            import dataclasses
            listed = []
            for name in self.names:
                default = self.defaults.get(name, dataclasses.MISSING)
                made = dataclasses.field(default_factory=default.factory) if isinstance(default, _Made) else \
                    dataclasses.field(default=default)
                listed.append((name, object, made))
            return dataclasses.make_dataclass(owner.__name__, listed).__dataclass_fields__
