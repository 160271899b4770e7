"""Whether a lesson's last exercise is passed by a variable that the lesson has made itself."""

import ast

import nbformat

from course_tools.lessons.authoring import take_apart
from course_tools.lessons.cells import tags_of

# Tried are values of the answer's kind: functions that take as many arguments, or whatever is no function. What the
# solution itself has named is left out, and so is what each kernel has from its beginning.
_TRIAL = """
import contextlib as _contextlib
import inspect as _inspect
import io as _io
import types as _types

def _is_alike(value, answer):
    if isinstance(value, _types.ModuleType) or callable(value) != callable(answer):
        return False
    if not callable(answer):
        return True
    try:
        _inspect.signature(value).bind(*_inspect.signature(answer).parameters)
    except (TypeError, ValueError):
        return False
    return True

def _passing(answer, check, own):
    hidden = get_ipython().user_ns_hidden
    for name, value in list(globals().items()):
        if not name.startswith("_") and name not in hidden and name not in own and value is not answer:
            with _contextlib.redirect_stdout(_io.StringIO()):
                passed = _is_alike(value, answer) and check(value)
            if passed:
                yield name

print("passed by:", *_passing({answer}, lambda _value: {check}, {own!r}))
"""


def trial_of(lesson):
    """A cell to run after all others, solutions among them: it prints which variables pass the last exercise."""
    last = [cell for cell in lesson.cells if "exercise" in tags_of(cell)][-1]
    exercise = take_apart(last.source)
    call = ast.parse(exercise.after).body[-1].value
    answer = ast.unparse(call.args[0])
    call.args[0] = ast.Name("_value")
    nodes = [node for node in ast.walk(ast.parse(exercise.solution)) if isinstance(node, ast.Name | ast.FunctionDef)]
    own = sorted({getattr(node, "id", None) or node.name for node in nodes if not is_read(node)})
    source = _TRIAL.replace("{answer}", answer).replace("{check}", ast.unparse(call)).replace("{own!r}", repr(own))
    return nbformat.v4.new_code_cell(source)


def is_read(node):
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def passed_by(cell):
    """The variables that an executed trial names; a slow kernel sends what it prints in pieces."""
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    assert printed.startswith("passed by:") and printed.endswith("\n"), printed
    return printed.removeprefix("passed by:").split()
