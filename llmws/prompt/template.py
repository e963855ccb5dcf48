"""A model's chat template, rendered in a bounded sandbox.

A template is a program that came with the model, so it is hostile until shown otherwise. Knows neither tokenizers nor
files. Invariant: `ChatTemplate.render` returns at most `MAX_CHARS` characters or raises `PromptError`, and ends at the
first step of a loop or a lazy filter, or the first call, after `MAX_CPU_S`.

What one step may cost is not bounded here: doubling a string in a loop can fill memory before the time is over. The
process that this runs in bounds that (`confinement`, `process`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llmws.engine_api import Turn
from llmws.errors import PromptError, one_line
from llmws.protocol import ErrorCode

MAX_SOURCE_CHARS: Final = 256 * 1024
"""Longest template taken; the longest in use are near 30,000 characters."""

MAX_CHARS: Final = 8 * 2**20
"""Longest text that a template may make: some ten seconds of tokenising."""

MAX_CPU_S: Final = 10.0
"""Processor time of one rendering; 4,096 messages take a tenth of a second."""

MAX_INT_BITS: Final = 4096
"""Widest integer that `*` and `**` may make; `9**999999999` takes minutes and all memory."""

MAX_INDENT: Final = 16
"""Spaces that `tojson` may put before each of its lines; with many lines more would be a minute and gigabytes."""


_PROBE: Final = "zqxw"
"""A text that no template writes by itself."""


def local_now() -> datetime:
    """The local time without a zone, as templates expect it from `strftime_now`."""
    return datetime.now()  # noqa: DTZ005 - the model is told the time on the wall, as transformers tells it


class ChatTemplate:
    """A compiled template. Not for use from two threads at once."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        clock: Callable[[], datetime] = local_now,
        cpu_clock: Callable[[], float] = time.thread_time,
        has_processor: bool = False,
    ) -> None:
        """Compiles the template.

        Args:
            source: Jinja text.
            special_tokens: `bos_token` and the like, which templates refer to by name.
            clock: what `strftime_now` formats.
            cpu_clock: seconds of processor time that this thread has used.
            has_processor: whether the model is one for images: many of their templates know contents in parts only.

        Raises:
            PromptError: `model_failed`: the template is too long or not valid.
        """
        if len(source) > MAX_SOURCE_CHARS:
            message = f"the model's chat template has {len(source)} characters; at most {MAX_SOURCE_CHARS} are taken"
            raise PromptError(ErrorCode.MODEL_FAILED, message)
        self._special_tokens = dict(special_tokens)
        self._sandbox = _Sandbox(clock, cpu_clock)
        try:
            self._template = self._sandbox.from_string(_metered(self._sandbox, source))
        except Exception as error:  # noqa: BLE001 - whatever a hostile template raises means the same
            message = f"the model's chat template is not valid: {_said(error)}"
            raise PromptError(ErrorCode.MODEL_FAILED, message) from None

        self._wants_parts = has_processor and not self._shows(_PROBE)

    def render(self, turns: Sequence[Turn]) -> str:
        """The prompt's text, ending where the model's answer begins.

        Raises:
            PromptError: `context_too_long` above `MAX_CHARS`; `model_failed` when the template fails, or refuses the
                conversation (it calls `raise_exception`, as for a role that it does not know).
        """
        try:
            return self._rendered([{"role": turn.role, "content": self._content(turn)} for turn in turns])
        except PromptError:
            raise
        except MemoryError:
            raise PromptError(ErrorCode.MODEL_FAILED, "the model's chat template took too much memory") from None
        except _RefusedError as refusal:
            message = f"the model's chat template refuses this conversation: {_said(refusal)}"
            raise PromptError(ErrorCode.MODEL_FAILED, message) from None
        except Exception as error:  # noqa: BLE001 - whatever a hostile template raises means the same
            message = f"the model's chat template failed: {_said(error)}"
            raise PromptError(ErrorCode.MODEL_FAILED, message) from None

    def _rendered(self, messages: Sequence[Mapping[str, object]]) -> str:
        variables = {
            **self._special_tokens,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        self._sandbox.start_clock()
        return _joined(self._template.generate(variables))

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        """The content as the template wants it: in parts where there are images, or where it knows nothing else."""
        if not (turn.images or self._wants_parts):
            return turn.content
        return [{"type": "image"}] * turn.images + [{"type": "text", "text": turn.content}]

    def _shows(self, text: str) -> bool:
        """Whether the template writes a message that is just text."""
        try:
            return text in self._rendered([{"role": "user", "content": text}])
        except Exception:  # noqa: BLE001 - whatever a hostile template raises means the same
            return False


def _said(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__


def _joined(pieces: Iterable[str]) -> str:
    taken: list[str] = []
    length = 0
    for piece in pieces:
        taken.append(piece)
        length += len(piece)
        if length > MAX_CHARS:
            raise PromptError(ErrorCode.CONTEXT_TOO_LONG, f"the prompt is longer than {MAX_CHARS} characters")
    return "".join(taken)


class _RefusedError(jinja2.TemplateError):
    """The template called `raise_exception`."""


# --- the sandbox ---------------------------------------------------------------------------------------------------


_LAZY_FILTERS: Final = ("map", "reject", "rejectattr", "select", "selectattr")

_UNBOUNDED_FILTERS: Final = (
    "batch",
    "center",
    "filesizeformat",
    "pprint",
    "random",
    "slice",
    "striptags",
    "urlize",
    "wordwrap",
    "xmlattr",
)
"""One call of these may run for minutes, or says something else each time; chat templates do without them."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment that transformers gives to chat templates, with an end.

    Source: options, filters and functions are those of `apply_chat_template`, transformers 5.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, clock: Callable[[], datetime], cpu_clock: Callable[[], float]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _GenerationTag])
        self._cpu_clock = cpu_clock
        self._ends_s = 0.0
        for name in _UNBOUNDED_FILTERS:
            del self.filters[name]
        self.filters |= {name: _metered_filter(self.filters[name]) for name in _LAZY_FILTERS}
        self.filters |= {"tojson": _to_json, "metered": _steps, "sum": _sum}
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda pattern: clock().strftime(pattern)
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]

    def start_clock(self) -> None:
        self._ends_s = self._cpu_clock() + MAX_CPU_S

    def step(self) -> None:
        if self._cpu_clock() > self._ends_s:
            raise TimeoutError(f"it took more than {MAX_CPU_S:g} s")

    def call(self, context: Context, function: object, /, *args: object, **kwargs: object) -> object:
        self.step()
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if _is_huge(operator, left, right):
            raise OverflowError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


def _metered(sandbox: _Sandbox, source: str) -> nodes.Template:
    """The parsed template, every loop of it looking at the clock at each step."""
    tree = sandbox.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "metered", [], [], None, None, lineno=loop.lineno)
    tree.set_environment(sandbox)
    return tree


def _metered_filter(lazy: Callable[..., object]) -> Callable[..., object]:
    """The filter, looking at the clock at each step."""

    @jinja2.pass_context
    def filtered(context: Context, items: Iterable[object], *args: object, **kwargs: object) -> object:
        # Nothing at all is an empty list for these filters.
        return lazy(context, _steps(context, items) if items else items, *args, **kwargs)

    return filtered


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment, items: Iterable[object], attribute: str | int | None = None, start: object = 0
) -> object:
    """The sum of numbers; of lists, each step would copy all that came before."""
    values = items if attribute is None else map(make_attrgetter(environment, attribute), items)
    total = start
    for value in values:
        if not (isinstance(total, int | float) and isinstance(value, int | float)):
            raise TypeError("only numbers can be summed")
        total += value
    return total


@jinja2.pass_context
def _steps(context: Context, items: Iterable[object]) -> Iterator[object]:
    sandbox = context.environment
    assert isinstance(sandbox, _Sandbox)
    for item in items:
        sandbox.step()
        yield item


def _is_huge(operator: str, left: object, right: object) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return bits > MAX_INT_BITS
    if operator == "*":
        items, times = (left, right) if isinstance(right, int) else (right, left)
        return isinstance(times, int) and isinstance(items, Sequence) and len(items) * times > MAX_CHARS
    return False


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's words for training; here it just shows its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """The `dict` of templates: `dict.update` of the type itself would change what the sandbox protects."""

    def __call__(self, items: Iterable[tuple[str, object]] = (), /, **more: object) -> dict[str, object]:
        return dict(items, **more)

    def fromkeys(self, keys: Iterable[object], value: object = None, /) -> dict[object, object]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """A `namespace()` that takes no underscored names, the way into the interpreter's inside."""

    def __init__(self, items: Iterable[tuple[str, object]] = (), /, **more: object) -> None:
        values = dict(items, **more)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _refuse(message: object) -> None:
    raise _RefusedError(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass it in this place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - likewise
) -> str:
    """JSON as transformers writes it: the filter that jinja2 brings escapes HTML."""
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise ValueError(f"tojson indents by {MAX_INDENT} at most")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
