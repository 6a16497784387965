"""YAML as a configuration file needs it: plain values only, and no way to say one thing twice.

Differs from yaml.safe_load where that is lenient: a key given twice is refused (the second would win in silence), as are
aliases and merge keys (a few hundred bytes of them can stand for gigabytes).
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases, merge keys and doubled keys."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            parser: Any = self  # whose stubs have no types
            raise ConstructorError(None, None, "aliases are not allowed", parser.get_event().start_mark)
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be a single word", key.start_mark)
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys are not allowed", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)


def read_yaml(content: bytes) -> Any:
    """Parse one YAML document of UTF-8 ``content`` into dict, list, str, int, float, bool, None and dates.

    Returns None for an empty document. Raises ValueError with one line, naming the line number where there is one.
    """
    try:
        return yaml.load(content.decode(), Loader=_StrictLoader)  # noqa: S506  it is a SafeLoader; yaml.load closes it
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
        raise ValueError(f"{place}not valid YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, IndexError) as error:
        # What PyYAML lets through from int(), float() and dates of the right shape and an impossible value.
        raise ValueError(f"not valid YAML: a value that cannot be ({error})") from None
    except RecursionError:
        raise ValueError("not valid YAML: nested too deeply") from None
