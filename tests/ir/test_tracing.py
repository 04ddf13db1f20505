"""The data flow that a trace shows is the one that the code says."""

import networkx as nx
import torch
from torch import nn
from torch.nn import functional

from guidedq.ir.graph import UseKind
from guidedq.ir.lifting import WeightedModule, lift
from guidedq.ir.tracing import trace


class Block(nn.Module):
    """q, k, v read one tensor; a residual joins; `unused` leads nowhere; `twice` runs two times."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.twice, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        read = self.norm(x)
        q, k, v = self.q(read), self.k(read.reshape(-1, 4)).reshape(read.shape), self.v(read)
        x = x + self.drop(self.o(functional.scaled_dot_product_attention(q, k, v)))
        self.unused(x)
        x = self.twice(self.twice(x)).mul_(2.0)
        return self.head(x)


WEIGHTED = {
    name: WeightedModule(parameter=f"{name}.weight", kind=UseKind.EMBEDDING if name == "embed" else UseKind.LINEAR)
    for name in ("embed", "q", "k", "v", "o", "twice", "unused", "head")
}
BATCH = {"tokens": torch.tensor([[1, 2, 3]])}


def traced():
    return trace(Block().eval(), BATCH, {name: part.parameter for name, part in WEIGHTED.items()})


def test_edges_are_the_nearest_origins():
    edges = set(traced().operators.edges)
    assert edges == {
        ("embed", "norm"), ("norm", "q"), ("norm", "k"), ("norm", "v"),
        ("q", "scaled_dot_product_attention"), ("k", "scaled_dot_product_attention"),
        ("v", "scaled_dot_product_attention"), ("scaled_dot_product_attention", "o"),
        ("embed", "add"), ("o", "add"), ("add", "unused"), ("add", "twice"), ("twice", "twice@2"), ("twice@2", "head"),
    }  # fmt: skip


def test_readers_of_one_tensor_are_found_through_a_reshape():
    assert ("q", "k", "v") in traced().readers


def test_output_comes_from_the_head_and_the_unused_branch_does_not_reach_it():
    seen = traced()
    assert seen.output == {"head"}
    assert set(seen.operators) - seen.reaching == {"unused"}


def test_lifted_graph_has_sites_in_data_order_and_ties_the_head():
    graph, notices = lift(Block().eval(), WEIGHTED, BATCH)
    assert [site.name for site in graph.sites] == [
        "embed.weight", "q.weight", "k.weight", "v.weight", "o.weight", "twice.weight",
    ]  # fmt: skip
    assert [use.operator for use in graph.sites[0].uses] == ["embed", "head"]
    assert graph.shared_inputs == (("q.weight", "k.weight", "v.weight"),)
    assert graph.head == "embed.weight"
    assert "unused.weight" in notices[0]


def test_tracing_leaves_no_hook_behind():
    module = Block().eval()
    lift(module, WEIGHTED, BATCH)
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())


class Untraceable(Block):
    """Refuses to run while torch functions are watched."""

    def forward(self, tokens):
        if torch._C._len_torch_function_stack():
            raise RuntimeError("watched")
        return super().forward(tokens)


def test_module_that_cannot_be_traced_becomes_a_chain_with_a_notice():
    graph, notices = lift(Untraceable().eval(), WEIGHTED, BATCH)
    assert nx.is_directed_acyclic_graph(graph.operators)
    assert list(nx.topological_sort(graph.operators)) == list(WEIGHTED)
    assert {site.name for site in graph.sites} == {part.parameter for part in WEIGHTED.values()} - {"head.weight"}
    assert "chain" in notices[0]
