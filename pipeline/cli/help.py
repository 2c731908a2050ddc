"""Help: the stages, and a stage's groups, keys and examples, as conf/ tells them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from graftline.console import console, say
from graftline.pipeline.cli.conf_files import HIDDEN, examples, find_stage, groups, keys, options, stages
from graftline.pipeline.program import program


def show_stages(folders: Sequence[Path]) -> None:
    """Print the stages, a line each."""
    say(f"{program()} STAGE [key=value ...]\n")
    rows = [(name, examples(file)[0].text if examples(file) else "") for name, file in stages(folders).items()]
    _show("", [*rows, ("config", "print the composed configuration of a training")])
    say(
        f"\n{program()} STAGE --help        groups, keys and examples of a stage"
        f"\n{program()} STAGE --config-dir DIR        with groups, options and stages of your own; ./conf is taken too"
        f"\n{program()} --completion bash        complete what you type; or zsh, fish"
    )


def show_stage(folders: Sequence[Path], stage: str) -> None:
    """Print what can be said to a stage; a UserError if there is none of that name."""
    file = find_stage(folders, stage)
    told = examples(file)
    for example in told[:1]:
        say(f"{example.command}        {example.text}")
    _show("Groups", [(group, _choices(folders, group, default)) for group, default in groups(file).items()])
    _show("Keys, as they are if you say nothing", [(f"{key.name}={key.default}", key.comment) for key in keys(file)])
    if told[1:]:
        console.print("\nExamples", style="bold")
    for example in told[1:]:
        say(f"{example.command}{'  # ' if example.text else ''}{example.text}")
    if stage == "train":
        say(f"\nAll keys, with those of the groups: {program()} config [key=value ...]")


def _choices(folders: Sequence[Path], group: str, default: str | None) -> Text:
    """Return the options of a group, the default in bold and first."""
    names = [name for name in sorted(options(folders, group)) if name not in (*HIDDEN, default)]
    parts = [Text(f"{default} (default)", style="bold")] if default else []
    parts += map(Text, [*names, *(["any name of timm's"] if group in ("backbone", "optim") else [])])
    return Text(", ").join(parts)


def _show(title: str, rows: Iterable[tuple[str, str | Text]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), text if isinstance(text, Text) else Text(text))
    if table.row_count:
        if title:
            console.print(f"\n{title}", style="bold")
        console.print(table)
