"""From a cut graph to a Plan and the callables of its host segments.

    cut ──► for every stage: HostCall | Stage, Dispatch per region, Unstage ──► Plan
Values cross the boundary only where they must: a host value is staged once however many programs read
it, a program's value is unstaged only if the host or the caller reads it, and what is saved for the
backward pass stays in its surface.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from torchane.abi.ports import PortLayout
from torchane.abi.ranges import UNSCALED
from torchane.capture.constants import Constants
from torchane.capture.crossing import Crossing
from torchane.capture.few_bits import dequantise
from torchane.capture.frozen import constants_among
from torchane.capture.graph import Cut, Region
from torchane.capture.host_segment import host_segment, read_by
from torchane.capture.lookups import naming_lookups
from torchane.capture.planned import Planned, Source
from torchane.capture.policies.left_out import is_absorbed
from torchane.capture.policies.masks import factors_of
from torchane.capture.policies.selections import selects
from torchane.capture.region import Known, Ports, RegionCompiler, RegionError
from torchane.capture.wide import BLOCK
from torchane.plan import Copy, Dispatch, HostCall, Part, Plan, Stage, Unstage
from torchane.plan.step_graph import Place


class Scheduler:
    """Of one attempt at a graph: raises RegionError where a region has no legal form."""

    def __init__(self, source: Source, cut: Cut, compiler: RegionCompiler):
        self.source = source
        self.graph = source.module.graph
        self.roles = source.roles
        self.blocks = source.blocks
        self.compiler = compiler
        self.cut = cut
        self.inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.results: list[Any] = list(self.graph.output_node().args[0])
        self.crossing = Crossing(cut, self.results, source.roles.kept)
        before, nodes = source.roles.before, {node.name: node for node in self.graph.nodes}
        known = {**before.weight_layouts, **before.surfaces}
        self.layouts: dict[fx.Node, PortLayout] = {nodes[name]: layout for name, layout in known.items() if name in nodes}
        self.surfaces_in = {nodes[name] for name in before.surfaces if name in nodes}
        self.unscaled: set[fx.Node] = {*cut.static, *(nodes[name] for name in before.unscaled if name in nodes)}
        new = self.roles.new_values(self.results, {node.name: node for node in self.inputs}) if self.roles.is_inference else {}
        self.written = {value: old for value, old in new.items() if old is not None}
        self.masks = factors_of(self.graph, cut.is_on_host)
        self.constants = Constants(source.module)
        self.data = cut.made_of({node for node in self.inputs if node.name in self.roles.data})
        self.on_host: set[fx.Node] = set(self.inputs) - self.surfaces_in
        self.in_surface: set[fx.Node] = set(self.surfaces_in)
        self.as_constant: set[fx.Node] = set()
        self.parts_there: set[fx.Node] = set()
        wholes = self.blocks.wholes
        self.whole_of = {part: node for node in wholes if self._is_made_of_parts(node) for part in wholes[node].parts}
        self.steps: list[Any] = []
        self.host_calls: dict[str, Callable[..., Sequence[Any]]] = {}
        self.region_ports = [self.crossing.ports(index) for index in range(len(cut.regions))]

    def _is_made_of_parts(self, whole: fx.Node) -> bool:
        """Programs compute every part: none needs a tensor of its own."""
        return all(self.cut.place[part] is Place.PROGRAM for part in self.blocks.wholes[whole].parts)

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
        self.compiler.compile(self.cut, alone, ports, {}, self._weight_ports(ports), self.constants, self._known())

    # ---- scheduling

    def run(self) -> Planned:
        try:
            return self._run()
        finally:
            self.constants.forget()  # this object lives on in a circle

    def _run(self) -> Planned:
        stages = [self.cut.stage[node] for node in self.graph.nodes if node in self.cut.stage]
        for stage in range(max(stages, default=0) + 1):
            if stage % 2 == 0:
                self._host_stage(stage)
            else:
                self._program_stage(stage)
        self._finish()
        kept = frozenset(i for i in self.roles.kept if self.results[i] in self.crossing.kept)
        plan = Plan(
            self.source.name,
            tuple(node.name for node in self.inputs),
            tuple(result.name if isinstance(result, fx.Node) else None for result in self.results),
            tuple(self.compiler.programs),
            tuple(self.steps),
            kept,
            {node.name: self.layouts[node] for node in self.inputs if node in self.surfaces_in},
            frozenset(node.name for node in self.source.scaled),
            {i: result for i, result in enumerate(self.results) if not isinstance(result, fx.Node | None)},
            bool(self.roles.tangents),
            {name: form for name, form in self.source.frozen.items() if form != "fp16"},
        )
        layouts = {node.name: layout for node, layout in self.layouts.items()}
        return Planned(plan, self.host_calls, layouts, self.cut, frozenset(node.name for node in self.unscaled))

    def _program_stage(self, stage: int) -> None:
        indices = [i for i, region in enumerate(self.cut.regions) if region.stage == stage]
        for index in indices:
            region, ports = self.cut.regions[index], self.region_ports[index]
            program, spec = self.compiler.compile(
                self.cut, region, ports, self._given(ports), self._weight_ports(ports), self.constants, self._known(),
                constants_among(self.source.frozen, ports.inputs),
            )  # fmt: skip
            held = [ports.inputs[constant.position] for constant in spec.constants]
            inputs = [node for node in ports.inputs if node not in held]
            needed = [node for node in inputs if node not in self.in_surface]
            looked_at = [node for node in dict.fromkeys(held) if node not in self.as_constant]
            for node, port in (*zip(inputs, spec.inputs, strict=True), *zip(ports.outputs, spec.outputs, strict=True)):
                known = self.layouts.setdefault(node, port.layout)
                assert known == port.layout, f"{node.name} lies as {known}, and {spec.name} takes or gives {port.layout}"
            if spec.ranges is not None:
                self.unscaled |= {node for node, form in zip(ports.outputs, spec.ranges.outputs, strict=True) if form == UNSCALED}
            self._make_weights(needed)
            if needed or looked_at:
                layouts = {ports.inputs[constant.position]: constant.layout for constant in spec.constants}
                constants = (Copy(node.name, layouts[node], is_weight=True, is_constant=True) for node in looked_at)
                self.steps.append(Stage((*map(self._copy_in, needed), *constants)))
            names = tuple(node.name for node in inputs), tuple(node.name for node in ports.outputs)
            self.steps.append(Dispatch(program, *names, region.where, tuple(node.name for node in held)))
            self.in_surface.update(needed, ports.outputs)
            self.as_constant.update(looked_at)
            leaving = [node for node in ports.outputs if self.crossing.host_reads(node)]
            if leaving:
                self.steps.append(Unstage(tuple(self._copy_out(node) for node in leaving)))

    def _make_weights(self, needed: Sequence[fx.Node]) -> None:
        """What is kept in few bits becomes numbers for the program that reads it, and is made anew for others."""
        few_bits = [node for node in needed if node.target is dequantise]
        if few_bits:
            self._host_call(f"{self.source.name}.weights{len(self.steps)}", few_bits, makes_weights=True)
            self.on_host.difference_update(few_bits)

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
        return Known(frozenset(self.unscaled), frozenset(self.cut.static), self.source.scaled)

    def _copy_in(self, node: fx.Node) -> Copy:
        origin = node.all_input_nodes[0] if self.cut.reasons.get(node) == BLOCK else node
        base = self.cut.base(origin)
        # A gradient of -1e6 that the host selected is one, and no mask.
        is_chosen = selects(base) and not {node, origin, base} & self.source.scaled
        is_exact = node in self.cut.static or base in self.data or is_chosen or self._is_absorbed(base)
        may_mask = is_exact and not {node, origin, base} & self.source.numbers
        masks = () if {node, origin, base} & self.source.numbers else self.masks.get(base, ())
        is_lent = node.name in self.source.lent
        return Copy(
            node.name, self.layouts[node], is_lent or node.name in self.roles.weights, may_mask, node in self.unscaled, masks=masks,
            is_kept=node.name in self.roles.before.weight_layouts and not is_lent, is_lent=is_lent,
        )  # fmt: skip

    def _is_absorbed(self, node: fx.Node) -> bool:
        """The host made it, and -inf may be written as what stands for it."""
        if self.cut.place[node] is not Place.HOST or node in self.source.scaled:
            return False
        return is_absorbed(node, lambda user: self.cut.place.get(user) is Place.PROGRAM)

    def _given(self, ports: Ports) -> dict[fx.Node, PortLayout]:
        return {node: self.layouts[node] for node in (*ports.inputs, *ports.outputs) if node in self.layouts}

    def _weight_ports(self, ports: Ports) -> set[fx.Node]:
        gradients = {self.results[i] for i in self.roles.weight_gradients if isinstance(self.results[i], fx.Node)}
        bases = {self.cut.base(node) for node in gradients}
        bases |= {part for part, whole in self.whole_of.items() if whole in bases} | self.blocks.gradients
        weights = self.roles.weights | self.source.lent
        return {node for node in ports.inputs if node.name in weights} | (bases & set(ports.outputs))

    def _host_stage(self, stage: int) -> None:
        here = [n for n in self.graph.nodes if self.cut.place.get(n) is Place.HOST and self.cut.stage[n] == stage]
        nodes = [n for n in here if n not in self.on_host and n.target is not dequantise]  # what programs wrote in parts is there
        if nodes:
            self._host_call(f"{self.source.name}.host{stage}", nodes)

    def _finish(self) -> None:
        """Outputs that are views or constants are made on the host, at the end."""
        left = (result for i, result in enumerate(self.results) if not (i in self.roles.kept and result in self.crossing.kept))
        missing = [result for result in left if isinstance(result, fx.Node) and result not in self.on_host]
        if missing:
            self._host_call(f"{self.source.name}.outputs", list(dict.fromkeys(missing)))

    def _host_call(self, key: str, nodes: list[fx.Node], makes_weights: bool = False) -> None:
        """Adds a segment that computes `nodes` from what the host has, views and constants made on the way."""
        self._unstage_for(nodes)
        made = host_segment(self.graph, self.cut, nodes, self.on_host, self.written)
        self.host_calls[key] = naming_lookups(fx.GraphModule(self.source.module, made.graph))
        self.steps.append(HostCall(key, made.ops, made.sources, made.leaving, makes_weights))
        self.on_host.update(nodes)

    def _unstage_for(self, nodes: list[fx.Node]) -> None:
        """Unstages what the forward kept in surfaces and these nodes read on the host."""
        saved = {node for node in self.surfaces_in if node not in self.on_host}
        read = read_by(nodes, self.on_host | saved)
        wanted = [node for node in self.inputs if node in saved & read]
        if wanted:
            self.steps.append(Unstage(tuple(Copy(node.name, self.layouts[node]) for node in wanted)))
            self.on_host.update(wanted)
