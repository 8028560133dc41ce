"""Results as tables that fit a terminal; `cli` prints them."""

from rich.markup import escape
from rich.table import Table

from requant.plan import Plan


def plan_table(plan: Plan) -> Table:
    """Return what each part of base and checkpoint weighs."""
    title = f"{plan.recipe}: {plan.quantized:,} of {plan.linears:,} linear layers of {plan.base} become INT4"
    table = Table(
        "", "tensors", "parameters", "bytes", box=None, pad_edge=False, title=escape(title), title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in plan.sizes.items():
        # Packed words are no parameters: counted before, they would only mislead after.
        parameters = f"{size.parameters:,}" if name.startswith("base") else ""
        indented = f"  {name.partition(', ')[2]}" if ", " in name else name
        table.add_row(indented, f"{size.tensors:,}", parameters, f"{size.bytes:,}")
    return table
