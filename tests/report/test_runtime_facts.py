"""What the runtime makes of a model: in the report's JSON, on its page, and on the terminal."""

from pathlib import Path

from sample_reports import sample_report

from guidedq.artifacts.report import Report
from guidedq.artifacts.runtime import RuntimeFacts, RuntimeNode
from guidedq.cli.compile import summary
from guidedq.report.page import page
from guidedq.report.wording import runtime_text

PRODUCT = RuntimeNode(operator="MatMulNBits", weight="codes", bits=4, block_size=64, accuracy_level=4)
FACTS = RuntimeFacts(
    name="ONNX Runtime 1.99",
    sites={
        "embed": (RuntimeNode(operator="Gather", weight="each call", bits=8), PRODUCT),
        "up": (PRODUCT,),
        "conv": (RuntimeNode(operator="FusedConv", weight="folded"),),
    },
    unpacking_nodes=12,
    unfolded_nodes=1,
)
LINE = (
    "2 x MatMulNBits 4 bits block 64 level 4, 1 x Gather 8 bits, dequantized at every call, 1 x FusedConv float; "
    "11 of 12 unpacking nodes folded at load, 1 left"
)


def test_it_reads_back_from_the_report(tmp_path: Path) -> None:
    report = sample_report(runtime=FACTS)
    (tmp_path / "report.json").write_text(report.to_json())
    assert Report.read(tmp_path / "report.json").runtime == FACTS


def test_it_is_one_line_on_the_terminal() -> None:
    assert runtime_text(FACTS) == LINE
    assert ("runs as", LINE) in summary(sample_report(runtime=FACTS))
    assert "runs as" not in dict(summary(sample_report()))


def test_it_is_one_table_on_the_page_with_a_line_for_each_kind() -> None:
    text = page(sample_report(runtime=FACTS))
    table = text[text.index("What ONNX Runtime 1.99 runs") :].partition("</section>")[0]
    assert table.count("<tr>") == 1 + 3
    for part in ("MatMulNBits", "2 sites", "dequantized at every call", "dequantized at load", "conv", "11 of 12"):
        assert part in table
    assert "ONNX Runtime 1.99" not in page(sample_report())
