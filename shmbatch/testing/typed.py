"""Which values of a type hypothesis draws, where MessagePack or a pickle carries them."""

from __future__ import annotations

import typing
from typing import Any

from ..app.extras import needed
from ..contract import schema
from ..errors import ConfigError
from .drawing import Bounds, Strategy, floats

_ITEMS_MAX = 4  # of lists and dicts
_INT, _FLOAT, _STR, _BYTES, _LIST, _DICT = (
    ("class", "builtins", name) for name in ("int", "float", "str", "bytes", "list", "dict")
)


def anything(bounds: Bounds) -> Strategy:
    """Return a strategy for whatever MessagePack has."""
    st = needed("testing", "hypothesis.strategies")
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    leaves = leaves | floats(bounds) | st.text() | st.binary()

    def nested(inner: Any) -> Any:
        lists = st.lists(inner, max_size=_ITEMS_MAX)
        return lists | st.dictionaries(st.text(), inner, max_size=_ITEMS_MAX)

    strategy: Strategy = st.recursive(leaves, nested, max_leaves=8)
    return strategy


class Typed:
    """Makes strategies for types, of which some may stand within themselves.

    Args:
        bounds: of floats and ints.
        where: the parameter, for messages.
    """

    def __init__(self, bounds: Bounds, where: str) -> None:
        self._st = needed("testing", "hypothesis.strategies")
        self._bounds = bounds
        self._where = where
        self._records: dict[type, Strategy] = {}

    def of(self, annotation: Any) -> Strategy:
        """Return a strategy for values of a type.

        Raises:
            ConfigError: hypothesis makes none.
        """
        try:
            strategy = self._of_tree(schema.describe(annotation))
        except schema.Unsupported:  # of pickles, which carry anything
            strategy = self._st.from_type(annotation)
        try:
            strategy.validate()
        except Exception as error:
            fact = str(error).partition("\n")[0][:200]
            raise ConfigError(
                f"hypothesis makes no values for {self._where}: {fact}; "
                f"give it a strategy, as in inputs(f, parameters={{...}})"
            ) from error
        return strategy

    def _of_tree(self, tree: schema.Tree) -> Strategy:
        """Return a strategy for a type as `schema.describe` describes it."""
        st = self._st
        kind, *rest = tree
        strategy: Strategy
        if kind == "any":
            strategy = anything(self._bounds)
        elif kind == "none":
            strategy = st.none()
        elif kind == "literal":
            strategy = st.sampled_from(rest)
        elif kind == "union":
            strategy = st.one_of([self._of_tree(each) for each in rest])
        elif kind == "meta":
            strategy = self._constrained(rest[0], dict(rest[1:]))
        elif tree == _INT:
            strategy = st.integers(-(2**63), 2**64 - 1)
        elif tree == _FLOAT:
            strategy = floats(self._bounds)
        elif kind == "of" and rest[0] == _LIST:
            strategy = st.lists(self._of_tree(rest[1]), max_size=_ITEMS_MAX)
        elif kind == "of" and rest[0] == _DICT:
            pair = map(self._of_tree, rest[1:])
            strategy = st.dictionaries(*pair, max_size=_ITEMS_MAX)
        else:
            strategy = self._of_class(schema.resolve(tree))
        return strategy

    def _of_class(self, found: Any) -> Strategy:
        """Return a strategy for a class; hypothesis does not see into a `msgspec.Struct`."""
        fields = getattr(found, "__struct_fields__", None)
        if fields is None:
            strategy: Strategy = self._st.from_type(found)
            return strategy
        if found not in self._records:
            whole: list[Strategy] = []  # which may have parts of its own kind
            self._records[found] = self._st.deferred(lambda: whole[0])
            hints = typing.get_type_hints(found, include_extras=True)
            given = {name: self._of_tree(schema.describe(hints[name])) for name in fields}
            whole.append(self._st.builds(found, **given))
        return self._records[found]

    def _constrained(self, base: schema.Tree, meta: dict[str, Any]) -> Strategy:
        """Return a strategy for a type with constraints; what is not heeded here filters."""
        st = self._st
        strategy: Strategy
        sizes = {"min_size": meta.get("min_length", 0), "max_size": meta.get("max_length")}
        if base == _INT:
            least = max(-(2**63), meta.get("ge", -(2**63)), meta.get("gt", -(2**64)) + 1)
            most = min(2**64 - 1, meta.get("le", 2**64), meta.get("lt", 2**65) - 1)
            factor = meta.get("multiple_of", 1)
            multiples = st.integers(-(-least // factor), most // factor)
            strategy = multiples.map(lambda each: each * factor)
        elif base == _FLOAT:
            least = meta.get("ge", meta.get("gt", -self._bounds.magnitude))
            most = meta.get("le", meta.get("lt", max(self._bounds.magnitude, least)))
            strategy = st.floats(least, most)
        elif base == _STR and "pattern" in meta:
            strategy = st.from_regex(meta["pattern"])
        elif base == _STR:
            strategy = st.text(**sizes)
        elif base == _BYTES:
            strategy = st.binary(**sizes)
        elif base[0] == "of" and base[1] == _LIST:
            strategy = st.lists(self._of_tree(base[2]), **sizes)
        else:
            strategy = self._of_tree(base)
        return strategy
