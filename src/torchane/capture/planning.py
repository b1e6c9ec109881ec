"""From a captured graph to a Plan and the callables of its host segments.

    cut ──► for every stage: HostCall | Stage, Dispatch per region, Unstage ──► Plan
Values cross the boundary only where they must: a host value is staged once however many programs read
it, a program's value is unstaged only if the host or the caller reads it, and what is saved for the
backward pass stays in its surface.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from torchane.abi.ports import PortLayout
from torchane.abi.ranges import ZERO
from torchane.capture.aliases import keep_views_of_results
from torchane.capture.draws import draw_from_shapes
from torchane.capture.graph import Cut, Place, Region, cut
from torchane.capture.host_graph import add_rows_in_place
from torchane.capture.pieces import border_in, cut_into_pieces
from torchane.capture.policies import FOLLOWED, Facts, State, host_reasons
from torchane.capture.policies.facts import Forward
from torchane.capture.policies.follow import sent_home
from torchane.capture.policies.left_out import LeftOut, is_absorbed, left_out_of
from torchane.capture.policies.linearity import linearity_of
from torchane.capture.policies.masks import add_what_is_subtracted, factors_of, let_softmax_give_zeros
from torchane.capture.policies.selections import selects
from torchane.capture.region import Known, Ports, RegionCompiler, RegionError
from torchane.capture.rules import why_not
from torchane.capture.torch_private import run_and_save_rng_state, run_with_rng_state
from torchane.capture.wide import BLOCK, Blocks, cut_wide_products
from torchane.plan import Copy, Dispatch, HostCall, Part, Plan, Stage, Unstage

aten = torch.ops.aten


@dataclass
class Roles:
    """What the caller knows of a graph's inputs and outputs.

    weights: placeholders that hold parameters. static: buffers, integers, masks. data: floats that want
    no gradient (a batch, an additive mask). lasting: floats that live on after the call and are not trained. written: output
    positions that are an input's new value, and the input. returned: output positions of the user's own results.
    is_inference: nothing is differentiated through this graph. tangents: incoming
    gradients. weight_gradients: output positions that leave as a parameter's gradient. kept: output
    positions saved for the backward pass. layouts: of surfaces that exist before this graph runs, by
    name; `surfaces_in` of them come in as surfaces, the others are staged that way. true: of those, the ones that range
    control stored as they are. wide: shapes of parameters whose products the forward was cut for. raw, precision, forward: as
    in `policies.Facts`.
    """

    weights: Collection[str] = ()
    static: Collection[str] = ()
    data: Collection[str] = ()
    lasting: Collection[str] = ()
    written: Mapping[int, str] = field(default_factory=dict)
    returned: Collection[int] = ()
    is_inference: bool = False
    tangents: Collection[str] = ()
    weight_gradients: Collection[int] = ()
    kept: Collection[int] = ()
    layouts: Mapping[str, PortLayout] = field(default_factory=dict)
    surfaces_in: Collection[str] = ()
    true: Collection[str] = ()
    wide: Collection[tuple[int, int]] = ()
    raw: Collection[str] = ()
    precision: str = "auto"
    forward: Forward | None = None


@dataclass
class Planned:
    """A plan, its host segments by key, the layout of every surface by the value's name, the graph
    as it was cut, the values that range control stored as they are, what was cut into blocks, and what policies sent to the host."""

    plan: Plan
    host_calls: dict[str, Callable[..., Sequence[Any]]]
    layouts: dict[str, PortLayout]
    cut: Cut
    true: frozenset[str] = frozenset()
    blocks: Blocks = field(default_factory=Blocks)
    sent_home: Forward = field(default_factory=Forward)


def plan_graph(name: str, graph: fx.Graph, module: fx.GraphModule, roles: Roles, compiler: RegionCompiler) -> Planned:
    """Cuts, lowers and schedules one graph.

    An op that turns out to have no legal form goes to the host with the reason, and the graph is cut again. Where every op of a
    region has one, and the region has none, it is cut in two.
    """
    _fill_missing_values(graph)
    _leave_out_empty_tensors(graph)
    draw_from_shapes(graph)
    add_what_is_subtracted(graph)
    let_softmax_give_zeros(graph)
    views = keep_views_of_results(graph, roles.kept)
    blocks = cut_wide_products(graph, roles.weights, roles.wide, compiler.chip.widest_matrix)
    roles = replace(roles, weights={*roles.weights, *blocks.weights})
    nodes = {node.name: node for node in graph.nodes}
    static = {nodes[name] for name in roles.static if name in nodes}
    facts = _facts(graph, roles, static, compiler, blocks)
    linearity = linearity_of(graph, facts.tangents, facts.kept)
    refused = host_reasons(graph, replace(facts, on_host={**linearity.reasons, **facts.on_host}))
    forward = sent_home(refused, FOLLOWED)
    left_out = LeftOut()
    if not roles.tangents:
        data = [nodes[name] for name in roles.data if name in nodes]
        left_out = left_out_of(graph, static, data, facts.given, lambda node: node in refused or why_not(node, compiler.chip) is not None)
        refused = {**left_out.reasons, **refused}
    borders: set[fx.Node] = set()
    most_ports = compiler.chip.limit("surfaces") - (2 if compiler.ranges else 0)  # range control's own
    while True:
        cut_graph = cut(graph, lambda node: why_not(node, compiler.chip) or refused.get(node), static, None, linearity.seeds, views)
        cut_graph = compiler.cut(cut_into_pieces(cut_graph, most_ports, borders))
        planner = _Planner(name, graph, module, roles, compiler.again(), cut_graph, nodes, blocks, linearity.scaled, left_out.numbers)
        try:
            return replace(planner.run(), sent_home=forward)
        except RegionError as error:
            assert not refused.keys() >= set(error.nodes), "a region was refused again after its ops went to the host"
            found = planner.blamed(error)
            border = border_in(cut_graph, error.nodes) if not found else None
            if border is not None:
                borders.add(border)
            else:
                refused.update(found or dict.fromkeys(error.nodes, str(error)))


def _facts(graph: fx.Graph, roles: Roles, static: Collection[fx.Node], compiler: RegionCompiler, blocks: Blocks) -> Facts:
    inputs = {node.name: node for node in graph.find_nodes(op="placeholder")}
    results = graph.output_node().args[0]
    return Facts(
        compiler.chip,
        frozenset(inputs[name] for name in roles.tangents if name in inputs),
        frozenset(inputs[name] for name in roles.weights if name in inputs),
        frozenset(static),
        frozenset(results[i] for i in roles.kept if isinstance(results[i], fx.Node)),
        dict(blocks.reasons),
        compiler.ranges,
        frozenset(inputs[name] for name in roles.data if name in inputs),
        frozenset(inputs[name] for name in roles.raw if name in inputs),
        frozenset(node for i, node in enumerate(results) if i not in roles.kept and isinstance(node, fx.Node)),
        roles.precision,
        roles.forward,
        _state(results, inputs, roles),
    )


def _state(results: Sequence[Any], inputs: Mapping[str, fx.Node], roles: Roles) -> State:
    written = {results[i]: inputs.get(name) for i, name in roles.written.items() if isinstance(results[i], fx.Node)}
    returned = frozenset(results[i] for i in roles.returned if isinstance(results[i], fx.Node))
    return State(written, returned, frozenset(inputs[name] for name in roles.lasting if name in inputs), roles.is_inference)


def _fill_missing_values(graph: fx.Graph) -> None:
    """AOTAutograd's partitioner writes no `val` on the draws that a checkpointed module repeats."""
    for node in graph.find_nodes(op="call_function", target=run_with_rng_state):
        node.meta.setdefault("val", _drawn(node.args[1], node.args[2:]))
    for node in graph.find_nodes(op="call_function", target=run_and_save_rng_state):
        node.meta.setdefault("val", (torch.get_rng_state(), _drawn(node.args[0], node.args[1:])))


def _drawn(op: Any, args: Sequence[Any]) -> Any:
    return op(*fx.node.map_arg(tuple(args), lambda source: source.meta["val"]))


def _leave_out_empty_tensors(graph: fx.Graph) -> None:
    """cat((x, empty)) is x, and the gradient that an empty slice gives is zeros. Partial rotary embeddings that rotate
    everything leave such: no program could hold them, and each would be a trip to the host."""

    def is_empty(node: Any) -> bool:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        return isinstance(value, torch.Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape)

    for node in list(graph.find_nodes(op="call_function", target=aten.cat.default)):
        parts = [part for part in node.args[0] if not is_empty(part)]
        if parts and len(parts) < len(node.args[0]):
            node.args = (parts, *node.args[1:])
    for node in list(graph.find_nodes(op="call_function", target=aten.slice_backward.default)):
        if is_empty(node.args[0]):
            with graph.inserting_before(node):
                dtype = node.meta["val"].dtype
                zeros = graph.call_function(aten.full.default, (list(node.args[1]), 0.0), {"dtype": dtype})
            zeros.meta.update(node.meta)
            node.replace_all_uses_with(zeros)
            graph.erase_node(node)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or not is_empty(node))


class _Planner:
    def __init__(
        self,
        name: str,
        graph: fx.Graph,
        module: fx.GraphModule,
        roles: Roles,
        compiler: RegionCompiler,
        cut_graph: Cut,
        nodes: dict[str, fx.Node],
        blocks: Blocks,
        scaled: frozenset[fx.Node],
        numbers: frozenset[fx.Node],
    ):
        self.name = name
        self.graph = graph
        self.module = module
        self.roles = roles
        self.compiler = compiler
        self.cut = cut_graph
        self.blocks = blocks
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.results: list[Any] = list(graph.output_node().args[0])
        self.kept = {self.results[i] for i in roles.kept if self._is_kept(self.results[i])}
        self.result_nodes = {result for result in self.results if isinstance(result, fx.Node)}
        self.given_back = {
            result for i, result in enumerate(self.results) if isinstance(result, fx.Node) and i not in roles.kept
        }
        self.scaled = scaled
        self.numbers = numbers
        self.layouts: dict[fx.Node, PortLayout] = {
            nodes[key]: layout for key, layout in roles.layouts.items() if key in nodes
        }
        self.surfaces_in = {nodes[key] for key in roles.surfaces_in if key in nodes}
        self.true: set[fx.Node] = {*cut_graph.static, *(nodes[key] for key in roles.true if key in nodes)}
        self.masks = factors_of(graph, cut_graph.is_on_host)
        self.constants: dict[fx.Node, torch.Tensor] = {}
        self.data = self._data()
        self.on_host: set[fx.Node] = set(self.inputs) - self.surfaces_in
        self.in_surface: set[fx.Node] = set(self.surfaces_in)
        self.parts_there: set[fx.Node] = set()
        self.whole_of = {part: node for node in blocks.wholes if self._is_made_of_parts(node) for part in blocks.wholes[node].parts}
        self.steps: list[Any] = []
        self.host_calls: dict[str, Callable[..., Sequence[Any]]] = {}
        self.region_ports = [self._ports(index) for index in range(len(cut_graph.regions))]

    def _is_kept(self, result: Any) -> bool:
        """A saved value stays in a surface if a program computed it."""
        return isinstance(result, fx.Node) and self.cut.place[self.cut.base(result)] is Place.PROGRAM

    def _is_made_of_parts(self, whole: fx.Node) -> bool:
        """Programs compute every part: none needs a tensor of its own."""
        return all(self.cut.place[part] is Place.PROGRAM for part in self.blocks.wholes[whole].parts)

    # ---- which values cross

    def _ports(self, index: int) -> Ports:
        region = self.cut.regions[index]
        inside = set(region.nodes)
        inputs: dict[fx.Node, None] = {}
        for node in region.nodes:
            for arg in node.all_input_nodes:
                base = self.cut.base(arg)
                if base not in inside and self.cut.place[base] is not Place.CONSTANT:
                    inputs[base] = None
        outputs: dict[fx.Node, None] = {}
        for node in region.nodes:
            if self._leaves(node, index):
                outputs[node] = None
        for node in self.kept:
            if self.cut.base(node) in inside:
                outputs[node] = None
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        return Ports(tuple(inputs), tuple(sorted(outputs, key=order.__getitem__)))

    def _leaves(self, node: fx.Node, index: int) -> bool:
        """Somebody outside of the region reads the node, directly or through views."""
        for user in node.users:
            place = self.cut.place.get(user)
            if place is Place.VIEW:
                if self._leaves(user, index):
                    return True
            elif place is Place.PROGRAM:
                if self.cut.region_of[user] != index:
                    return True
            elif place is Place.HOST or self._is_user_output(node):
                return True
        return False

    def _is_user_output(self, node: fx.Node) -> bool:
        return node in self.given_back or (node not in self.kept and node in self.result_nodes)

    # ---- what no program can hold

    def blamed(self, error: RegionError) -> dict[fx.Node, str]:
        """The ops of a refused region that have no legal form alone either, each with its reason."""
        if len(error.nodes) == 1:
            return {error.nodes[0]: str(error)}
        found: dict[fx.Node, str] = {}
        for node in error.nodes:
            if node.target is operator.getitem:
                continue
            results = [other for other in error.nodes if other.target is operator.getitem and other.args[0] is node]
            try:
                self._compile_alone([node, *results])
            except RegionError as alone:
                found.update(dict.fromkeys([node, *results], str(alone)))
        return found

    def _compile_alone(self, nodes: list[fx.Node]) -> None:
        region = self.cut.regions[self.cut.region_of[nodes[0]]]
        sources = {self.cut.base(source) for node in nodes for source in node.all_input_nodes}
        inputs = tuple(s for s in self.graph.nodes if s in sources and s not in nodes and self.cut.place[s] is not Place.CONSTANT)
        ports = Ports(inputs, tuple(nodes[1:] or nodes))
        alone = Region(region.stage, region.where, nodes)
        self.compiler.compile(self.cut, alone, ports, {}, self._weight_ports(ports), self._constant, self._known())

    # ---- scheduling

    def run(self) -> Planned:
        stages = [self.cut.stage[node] for node in self.graph.nodes if node in self.cut.stage]
        for stage in range(max(stages, default=0) + 1):
            if stage % 2 == 0:
                self._host_stage(stage)
            else:
                self._program_stage(stage)
        self._finish()
        kept = frozenset(i for i in self.roles.kept if self.results[i] in self.kept)
        plan = Plan(
            self.name,
            tuple(node.name for node in self.inputs),
            tuple(result.name if isinstance(result, fx.Node) else None for result in self.results),
            tuple(self.compiler.programs),
            tuple(self.steps),
            kept,
            {node.name: self.layouts[node] for node in self.inputs if node in self.surfaces_in},
            frozenset(node.name for node in self.scaled),
            {i: result for i, result in enumerate(self.results) if not isinstance(result, fx.Node | None)},
            bool(self.roles.tangents),
        )
        layouts = {node.name: layout for node, layout in self.layouts.items()}
        return Planned(plan, self.host_calls, layouts, self.cut, frozenset(node.name for node in self.true), self.blocks)

    def _program_stage(self, stage: int) -> None:
        indices = [i for i, region in enumerate(self.cut.regions) if region.stage == stage]
        for index in indices:
            region, ports = self.cut.regions[index], self.region_ports[index]
            needed = [node for node in ports.inputs if node not in self.in_surface]
            program, spec = self.compiler.compile(
                self.cut, region, ports, self._given(ports), self._weight_ports(ports), self._constant, self._known()
            )
            for node, port in (*zip(ports.inputs, spec.inputs), *zip(ports.outputs, spec.outputs)):
                known = self.layouts.setdefault(node, port.layout)
                assert known == port.layout, f"{node.name} lies as {known}, and {spec.name} takes or gives {port.layout}"
            if spec.ranges is not None:
                self.true |= {node for node, form in zip(ports.outputs, spec.ranges.outputs, strict=True) if form == ZERO}
            if needed:
                self.steps.append(Stage(tuple(self._copy_in(node) for node in needed)))
            names = tuple(node.name for node in ports.inputs), tuple(node.name for node in ports.outputs)
            self.steps.append(Dispatch(program, *names, region.where))
            self.in_surface.update(needed, ports.outputs)
            leaving = [node for node in ports.outputs if self._host_reads(node)]
            if leaving:
                self.steps.append(Unstage(tuple(self._copy_out(node) for node in leaving)))

    def _copy_out(self, node: fx.Node) -> Copy:
        """Afterwards the value is on the host, or the one that it is the last missing part of."""
        whole = self.whole_of.get(node)
        if whole is None:
            self.on_host.add(node)
            return Copy(node.name, self.layouts[node])
        made = self.blocks.wholes[whole]
        self.parts_there.add(node)
        is_last = self.parts_there.issuperset(made.parts)
        if is_last:
            self.on_host.add(whole)
        start = made.starts()[made.parts.index(node)]
        return Copy(node.name, self.layouts[node], part=Part(whole.name, tuple(whole.meta["val"].shape), made.axis, start, is_last))

    def _known(self) -> Known:
        return Known(frozenset(self.true), frozenset(self.cut.static), self.scaled)

    def _copy_in(self, node: fx.Node) -> Copy:
        origin = node.all_input_nodes[0] if self.cut.reasons.get(node) == BLOCK else node
        base = self.cut.base(origin)
        is_exact = node in self.cut.static or base in self.data or selects(base) or self._is_absorbed(base)
        may_mask = is_exact and not {node, origin, base} & self.numbers
        masks = () if {node, origin, base} & self.numbers else self.masks.get(base, ())
        return Copy(node.name, self.layouts[node], node.name in self.roles.weights, may_mask, node in self.true, masks=masks)

    def _is_absorbed(self, node: fx.Node) -> bool:
        """The host made it, and -inf may be written as what stands for it."""
        if self.cut.place[node] is not Place.HOST or node in self.scaled:
            return False
        return is_absorbed(node, lambda user: self.cut.place.get(user) is Place.PROGRAM)

    def _given(self, ports: Ports) -> dict[fx.Node, PortLayout]:
        return {node: self.layouts[node] for node in (*ports.inputs, *ports.outputs) if node in self.layouts}

    def _weight_ports(self, ports: Ports) -> set[fx.Node]:
        gradients = {self.results[i] for i in self.roles.weight_gradients if isinstance(self.results[i], fx.Node)}
        bases = {self.cut.base(node) for node in gradients}
        bases |= {part for part, whole in self.whole_of.items() if whole in bases}
        return {node for node in ports.inputs if node.name in self.roles.weights} | (bases & set(ports.outputs))

    def _host_reads(self, node: fx.Node) -> bool:
        if self._is_user_output(node):
            return True
        for user in node.users:
            place = self.cut.place.get(user)
            if place is Place.HOST or (place is Place.VIEW and user not in self.kept and self._host_reads(user)):
                return True
            if place is Place.VIEW and user in self.kept and any(self.cut.place.get(u) is Place.HOST for u in user.users):
                return True
        return False

    def _host_stage(self, stage: int) -> None:
        here = [n for n in self.graph.nodes if self.cut.place.get(n) is Place.HOST and self.cut.stage[n] == stage]
        nodes = [n for n in here if n not in self.on_host]  # what programs wrote in parts is there
        if nodes:
            self._host_call(f"{self.name}.host{stage}", nodes)

    def _finish(self) -> None:
        """Outputs that are views or constants are made on the host, at the end."""
        missing = [
            result
            for i, result in enumerate(self.results)
            if isinstance(result, fx.Node)
            and result not in self.on_host
            and not (i in self.roles.kept and result in self.kept)
        ]
        if missing:
            self._host_call(f"{self.name}.outputs", list(dict.fromkeys(missing)))

    def _host_call(self, key: str, nodes: list[fx.Node]) -> None:
        """Adds a segment that computes `nodes` from what the host has, views and constants made on the way."""
        self._bring_home(nodes)
        segment = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        sources: dict[fx.Node, None] = {}
        ran: list[tuple[str, str]] = []

        def make(node: fx.Node) -> fx.Node:
            if node in made:
                return made[node]
            if node in self.on_host:
                sources[node] = None
                made[node] = segment.placeholder(node.name)
                return made[node]
            for arg in node.all_input_nodes:
                make(arg)
            made[node] = segment.node_copy(node, made.__getitem__)
            if self.cut.place[node] is Place.HOST:
                ran.append((str(node.target), self.cut.reasons.get(node, "")))
            return made[node]

        read = self._read_by(nodes, self.on_host)
        for node in self.graph.nodes:  # placeholders first, in the graph's order
            if node in read:
                make(node)
        for node in nodes:
            make(node)
        own = set(nodes)
        leaving = [node for node in nodes if not own.issuperset(node.users)]
        segment.output(tuple(made[node] for node in leaving))
        add_rows_in_place(segment, self.cut, made)
        self.host_calls[key] = fx.GraphModule(self.module, segment)
        self.steps.append(HostCall(key, tuple(ran), tuple(n.name for n in sources), tuple(n.name for n in leaving)))
        self.on_host.update(nodes)

    def _bring_home(self, nodes: list[fx.Node]) -> None:
        """Unstages what the forward kept in surfaces and these nodes read on the host."""
        saved = {node for node in self.surfaces_in if node not in self.on_host}
        read = self._read_by(nodes, self.on_host | saved)
        wanted = [node for node in self.inputs if node in saved & read]
        if wanted:
            self.steps.append(Unstage(tuple(Copy(node.name, self.layouts[node]) for node in wanted)))
            self.on_host.update(wanted)

    def _read_by(self, nodes: list[fx.Node], there: set[fx.Node]) -> set[fx.Node]:
        """Which values that are there these nodes are made from."""
        pending, seen = list(nodes), set(nodes)
        read = {node for node in nodes if node in there}
        while pending:
            for arg in pending.pop().all_input_nodes:
                if arg in there:
                    read.add(arg)
                elif arg not in seen:
                    seen.add(arg)
                    pending.append(arg)
        return read

    # ---- values

    def _constant(self, node: fx.Node) -> torch.Tensor:
        """Evaluates a node that no tensor reaches, once."""
        if node not in self.constants:
            if node.op == "get_attr":
                self.constants[node] = getattr(self.module, str(node.target))
            else:
                args = fx.node.map_arg(node.args, self._constant)
                kwargs = fx.node.map_arg(node.kwargs, self._constant)
                self.constants[node] = node.target(*args, **kwargs)
        return self.constants[node]

    def _data(self) -> frozenset[fx.Node]:
        """Inputs that want no gradient, and what the host makes of them alone: a mask may be among them."""
        found = {node for node in self.inputs if node.name in self.roles.data}
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            known = all(source in found or source in self.cut.static or self.cut.place[source] is Place.CONSTANT for source in sources)
            if node.op == "call_function" and known and any(source in found for source in sources):
                found.add(node)
        return frozenset(found)
