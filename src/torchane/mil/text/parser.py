"""The upper layer of the parser: programs, functions, blocks, statements.

    program(1.3) [buildInfo = dict<string, string>({{"a", "b"}})] {
        func main<ios18>(tensor<fp16, [2]> x) [attribute = constant] {
            tensor<fp16, [2]> y = relu(x = x)[name = string("y")];
        } -> (y);
    }

White space is free. The `program` line may be missing (tests and examples write only the function), and so may
the opset, the brackets behind an op, the last newline. Nested blocks stand between an op's brackets and its
semicolon: `cond(pred = p)[...] then(T a) { ... } -> (b) else() { ... } -> (c);`, or before the brackets. Unknown
ops are kept.

Almost every statement of a compiled model has one of two plain forms; each is read by one regular expression.
Source: texts of Apple's compiler and of kernels written for it; no grammar is published. No text with nested
blocks is public either: their form here is that of functions, as in coremltools' printed programs, and Apple's
may differ.
"""

import re

from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.ir import DEFAULT_FUNCTION, Arg, Block, Function, Literal, Op, Program, Var
from torchane.mil.kinds import OpKind, kind_of
from torchane.mil.text.scanner import NAME
from torchane.mil.text.style import VERSION
from torchane.mil.text.value_scanner import ValueScanner
from torchane.mil.types import STRING, DictType, TensorType

_NAME = NAME.pattern
_TITLE = r'\)\[name ?= ?(?:string|tensor<string, \[\]>)\("([^"\\\n]*)"\)'
_HEAD = re.compile(rf"\s*(tensor<[a-z0-9]+, \[[0-9?, ]*\]>|[a-z]+[0-9]*) ({_NAME}) = ({_NAME})\(")
_ARGS = re.compile(rf"((?:{_NAME} ?= ?(?:{_NAME}|\({_NAME}(?:, ?{_NAME})*\))(?:, ?(?={_NAME})|(?=\))))*){_TITLE}\];")
_ARG = re.compile(rf"({_NAME}) ?= ?(?:({_NAME})|\(([^)]*)\))")
_CONST = re.compile(rf"{_TITLE}, ?val ?= ?")
_STRING_TYPE = TensorType(STRING)


def parse(text: str, path: str = "<text>") -> Program:
    """The program that a text spells out. `path` names the text in errors.

    Raises ParseError (a MilSyntaxError, with line and column) for a text that is not MIL, for names that are
    used and not defined, for values that do not fit their types. It does not check ops: see `mil.check`.
    """
    return _ProgramScanner(text, path).program()


class _ProgramScanner(ValueScanner):
    def __init__(self, text: str, path: str):
        super().__init__(text, path)
        self._scope: dict[str, Var] = {}
        self._undo: list[tuple[str, Var | None]] = []  # what each definition in a block hid
        self._kinds: dict[str, OpKind] = {}

    def program(self) -> Program:
        if self.text.startswith("\ufeff"):
            self.pos = 1
        if not self.at("program"):
            functions = self._functions("")
            return Program(functions)
        self.pos += len("program")
        self.expect("(", "after program")
        self.space()
        start = self.pos
        version = self.number()
        if VERSION.fullmatch(version) is None:
            self.fail(f"a version is a number such as 1.3, not {version!r}.", start)
        self.expect(")", "after the version")
        attrs = self._attributes()
        build_info = _pairs(attrs.get("buildInfo"))
        if build_info is not None:
            del attrs["buildInfo"]
        self.expect("{", "before the functions")
        functions = self._functions("}")
        self.expect("}", "after the functions")
        self.accept(";")
        if self.peek():
            self.fail(f"expected the end of the text and found {self.found()}.")
        pairs = dict(build_info or ())
        default = pairs.get(DEFAULT_FUNCTION)
        kept = tuple(pair for pair in build_info or () if pair[0] != DEFAULT_FUNCTION)
        return Program(functions, version, kept, attrs, default)

    def _functions(self, closing: str) -> tuple[Function, ...]:
        functions: dict[str, Function] = {}
        while not functions or (self.peek() != closing and self.peek()):
            start = self.pos
            function = self._function()
            if function.name in functions:
                self.fail(f"there are two functions named {function.name!r}.", start)
            functions[function.name] = function
        return tuple(functions.values())

    def _function(self) -> Function:
        self.space()
        start = self.pos
        if self.name("func") != "func":
            self.fail("a program holds functions, each beginning with func.", start)
        name = self.name("the function's name")
        opset = "ios18"
        if self.accept("<"):
            opset = self.name("an opset such as ios18")
            self.expect(">", "after the opset")
        self._scope = {}
        inputs = self._parameters()
        attrs = self._attributes()
        ops, outputs = self._body()
        self.accept(";")
        return Function(name, inputs, ops, outputs, opset, attrs)

    def _parameters(self) -> tuple[Var, ...]:
        """`(type name, ...)`, each put into the scope."""
        self.expect("(", "before the parameters")
        inputs: list[Var] = []
        while not self.accept(")"):
            inputs.append(self._declared())
            if not self.accept(","):
                self.expect(")", "after the parameters")
                break
        for var in inputs:
            self._define(var)
        names = {var.name for var in inputs}
        if len(names) != len(inputs):
            self.fail("two parameters have one name.")
        return tuple(inputs)

    def _declared(self) -> Var:
        type_ = self.type()
        return Var(self.name(f"the name of a {type_}"), type_)

    def _attributes(self) -> dict[str, Literal]:
        """`[name = constant, ...]`, or nothing."""
        attrs: dict[str, Literal] = {}
        if not self.accept("["):
            return attrs
        while not self.accept("]"):
            start = self.pos
            name = self.name("an attribute")
            if name in attrs:
                self.fail(f"the attribute {name!r} is given twice.", start)
            self.expect("=", f"after the attribute {name}")
            attrs[name] = self.literal()
            if not self.accept(","):
                self.expect("]", "after the attributes")
                break
        return attrs

    def _body(self) -> tuple[tuple[Op, ...], tuple[Var, ...]]:
        """`{ statement ... } -> (name, ...)`; the arrow may be missing where nothing is given back."""
        self.expect("{", "before the statements")
        ops: list[Op] = []
        while True:
            op = self._plain_statement()
            if op is not None:
                ops.append(op)
            elif self.accept("}"):
                break
            else:
                ops.append(self._statement())
        outputs: list[Var] = []
        if self.accept("->"):
            self.expect("(", "before the outputs")
            while not self.accept(")"):
                outputs.append(self._known())
                if not self.accept(","):
                    self.expect(")", "after the outputs")
                    break
        return tuple(ops), tuple(outputs)

    def _define(self, var: Var) -> None:
        if self.depth:
            self._undo.append((var.name, self._scope.get(var.name)))
        self._scope[var.name] = var

    def _known(self) -> Var:
        """A name that is defined before this place."""
        self.space()
        start = self.pos
        name = self.name("the name of a value")
        var = self._scope.get(name)
        if var is None:
            self.fail(f"the name {name!r} is not defined before this place.", start)
        return var

    def _kind(self, name: str) -> OpKind:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = kind_of(name)
        return kind

    def _plain_statement(self) -> Op | None:
        """A const or an op of one result whose arguments are names, in the usual spacing; None, and nothing
        read, if the next statement is anything else or is wrong."""
        text = self.text
        head = _HEAD.match(text, self.pos)
        if head is None:
            return None
        type_ = self.types.get(head.group(1))
        if type_ is None:
            return None
        name, kind = head.group(2), head.group(3)
        if kind == "const":
            title = _CONST.match(text, head.end())
            if title is None:
                return None
            self.pos = title.end()
            value = self.literal()
            if not text.startswith("];", self.pos):
                self.pos = head.start()
                return None
            self.pos += 2
            args: dict[str, Arg] = {}
            attrs = {"name": Literal(_STRING_TYPE, title.group(1)), "val": value}
        else:
            tail = _ARGS.match(text, head.end())
            if tail is None:
                return None
            found = self._plain_args(tail.group(1))
            if found is None:
                return None
            args = found
            attrs = {"name": Literal(_STRING_TYPE, tail.group(2))}
            self.pos = tail.end()
        var = Var(name, type_)
        self._define(var)
        return Op(self._kind(kind), args, (var,), attrs)

    def _plain_args(self, text: str) -> dict[str, Arg] | None:
        """`a = x, b = (y, z)` by name; None where a name is unknown or an argument is given twice."""
        scope = self._scope
        args: dict[str, Arg] = {}
        count = 0
        for count, (key, name, names) in enumerate(_ARG.findall(text), 1):
            if name:
                var = scope.get(name)
                if var is None:
                    return None
                args[key] = var
            else:
                items = [scope.get(item.strip()) for item in names.split(",")]
                if None in items:
                    return None
                args[key] = tuple(items)  # type: ignore[arg-type]
        return args if len(args) == count else None

    def _statement(self) -> Op:
        """Any statement: no, one or several results, constants as arguments, attributes, blocks."""
        outputs: list[Var] = []
        if not self._at_call():
            bracketed = self.accept("(")
            outputs.append(self._declared())
            while self.accept(","):
                outputs.append(self._declared())
            if bracketed:
                self.expect(")", "after the results")
            self.expect("=", "after the results of an op")
        kind = self._kind(self.name("the name of an op"))
        args = self._arguments(kind.name)
        attrs = self._attributes()
        blocks: list[Block] = []
        while self.peek() not in (";", "}", "[", ""):
            blocks.append(self._block(kind.name))
            self.accept(",")
        if blocks and not attrs:
            attrs = self._attributes()
        self.expect(";", f"at the end of the statement {kind.name}")
        for var in outputs:
            self._define(var)
        return Op(kind, args, tuple(outputs), attrs, tuple(blocks))

    def _at_call(self) -> bool:
        """Whether an op without results comes next: a name with its bracket, `write_state(`."""
        self.space()
        word = NAME.match(self.text, self.pos)
        return word is not None and self.follows(word.end(), "(")

    def _arguments(self, kind: str) -> dict[str, Arg]:
        self.expect("(", f"before the arguments of {kind}")
        args: dict[str, Arg] = {}
        while not self.accept(")"):
            start = self.pos
            name = self.name(f"an argument of {kind}")
            if name in args:
                self.fail(f"the argument {name!r} is given twice.", start)
            self.expect("=", f"after the argument {name}")
            args[name] = self._argument()
            if not self.accept(","):
                self.expect(")", f"after the arguments of {kind}")
                break
        return args

    def _argument(self) -> Arg:
        if not self.accept("("):
            return self._item()
        items: list[Var | Literal] = []
        while not self.accept(")"):
            items.append(self._item())
            if not self.accept(","):
                self.expect(")", "after the values")
                break
        return tuple(items)

    def _item(self) -> Var | Literal:
        """A name or a constant. A value may be called `fp16` or `inf`: what is defined comes first."""
        self.space()
        word = NAME.match(self.text, self.pos)
        if word is None:
            return self.literal()
        var = self._scope.get(word.group())
        if var is not None and self.text[word.end() : word.end() + 1] not in ("(", "<"):
            self.pos = word.end()
            return var
        if self.at_type() or word.group() in ("true", "false", "inf", "nan", "BLOBFILE"):
            return self.literal()
        return self._known()

    def _block(self, kind: str) -> Block:
        """`name(type input, ...) { statements } -> (outputs)`; what it defines is unknown outside."""
        self.enter()
        mark = len(self._undo)
        start = self.pos
        name = "" if self.at("{") or self.at("(") else self.name(f"a block of {kind}, or ;")
        inputs = self._parameters() if self.at("(") else ()
        if not self.at("{"):
            self.fail(f"expected ';' at the end of the statement {kind} and found {name!r}.", start)
        ops, outputs = self._body()
        for hidden, var in reversed(self._undo[mark:]):
            if var is None:
                self._scope.pop(hidden, None)
            else:
                self._scope[hidden] = var
        del self._undo[mark:]
        self.leave()
        return Block(inputs, ops, outputs, name)


def _pairs(info: Literal | None) -> tuple[tuple[str, str], ...] | None:
    """A dict from strings to strings as plain pairs; None for anything else."""
    if info is None or info.type != DictType(_STRING_TYPE, _STRING_TYPE):
        return None
    return tuple((key.value, value.value) for key, value in info.value)  # type: ignore[attr-defined]
