"""Asks vLLM's own functions which layers a configuration of another tool means; nothing else of vLLM is run.

`targets.py FOLDER`; reads lines `[kind, lists, names]`, writes for each a line of answers, one per name. Of
`compressed-tensors` the lists are ignore and targets, and an answer is whether a linear layer is ignored, and its
target or null; of `modelopt` and `fp8` the list is what is excluded, and an answer is whether the layer is. Standard
library only, in a process of its own.
"""

import __future__

import ast
import json
import re
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal

FOLDER = Path(sys.argv[1]) / "model_executor" / "layers" / "quantization"
WANTED = {
    "utils/config_utils.py": ("find_matching_patterns", "is_equal_or_regex_match"),
    "compressed_tensors/utils.py": (
        *("should_ignore_layer", "find_matched_target", "_find_first_match", "_match_fused_layer"),
    ),
    "utils/quant_utils.py": ("is_layer_skipped",),
    "modelopt.py": ("is_layer_excluded",),
}


def functions() -> dict[str, Any]:
    """Compile the wanted functions alone; annotations are not evaluated."""
    names: dict[str, Any] = {"re": re, "fnmatch": fnmatch, "Literal": Literal, "MappingProxyType": MappingProxyType}
    names |= {"Iterable": Iterable, "Mapping": Mapping}
    for file, wanted in WANTED.items():
        tree = ast.parse((FOLDER / file).read_text())
        found = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name in wanted]
        assert {each.name for each in found} == set(wanted), file
        module = ast.Module([*dict.fromkeys(found)], [])
        flags = __future__.annotations.compiler_flag
        exec(compile(module, file, "exec", flags), names)  # noqa: S102
    return names


class Linear:
    """What a plain linear layer of vLLM's is called ends so."""


def main() -> None:
    """Answer until the input ends."""
    found = functions()
    for line in sys.stdin:
        kind, lists, names = json.loads(line)
        answers: list[Any] = []
        for name in names:
            if kind == "compressed-tensors":
                ignored = found["should_ignore_layer"](name, lists[0])
                answers.append([ignored, found["find_matched_target"](name, Linear(), lists[1])])
            elif kind == "fp8":
                answers.append(found["is_layer_skipped"](name, lists[0]))
            else:
                config = SimpleNamespace(exclude_modules=lists[0], packed_modules_mapping={})
                answers.append(found["is_layer_excluded"](config, name))
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
