"""The results as tables in Markdown, and as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.peers.goals import goals
from benchmarks.peers.records import Record, Records, medians, plain

FORMAT = 1


def document(about: Mapping[str, Any], records: Records, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """All of it: machine, tools, images, every raw value, medians and goals."""
    reached = goals(records, {tool: size["kept_bytes"] for tool, size in sizes.items()})
    return {
        "format": FORMAT,
        **about,
        "records": plain(records),
        "sizes": {tool: dict(size) for tool, size in sizes.items()},
        "medians": medians(records),
        "goals": [{**asdict(goal), "verdict": goal.verdict} for goal in reached],
    }


def tables(results: Mapping[str, Any], records: Records) -> str:
    """What a person reads."""
    parts = [_about(results)]
    for disk in records.names(lambda record: record.disk):
        of_disk = [record for record in records.all if record.disk == disk]
        steps = records.names(lambda record: record.step, of_disk)
        tools = records.names(lambda record: record.tool, of_disk)
        rows = [[tool, *(_wall(records, disk, step, tool) for step in steps)] for tool in tools]
        parts.append(f"Disk {disk}, seconds of whole processes, median [least–greatest]\n\n")
        parts[-1] += table(["tool", *steps], rows)
        memory = [[tool, *(_memory(records, disk, step, tool) for step in steps)] for tool in tools]
        parts.append(f"Disk {disk}, CPU seconds (median); peak resident MiB, private MiB\n\n")
        parts[-1] += table(["tool", *steps], memory)
    sizes: Mapping[str, Mapping[str, int]] = results["sizes"]
    if sizes:
        points = list(dict.fromkeys(key for size in sizes.values() for key in size))
        rows = [[tool, *(f"{size.get(point, 0) / 1e6:.1f}" for point in points)] for tool, size in sizes.items()]
        parts.append("Stored, MB\n\n" + table(["tool", *points], rows))
    rows = [_goal(goal) for goal in results["goals"]]
    parts.append("Goals\n\n" + table(["work", "must", "stretch", "reached [least–greatest]", ""], rows))
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    ruled = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(head, widths), f"| {' | '.join(ruled)} |", *(_line(row, widths) for row in rows)]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return f"| {' | '.join(cells)} |"


def _wall(records: Records, disk: str, step: str, tool: str) -> str:
    found = records.wall(disk, step, tool)
    return found.show() if found else ""


def _memory(records: Records, disk: str, step: str, tool: str) -> str:
    found = [r for r in records.all if (r.disk, r.step, r.tool) == (disk, step, tool)]
    if not found:
        return ""
    cpu = sorted(r.cpu_seconds for r in found)[len(found) // 2]
    rss, private = (max(getattr(r, name) for r in found) >> 20 for name in ("peak_rss_bytes", "peak_private_bytes"))
    return f"{cpu:.2f}; {rss}, {private}"


def _goal(goal: Mapping[str, Any]) -> list[str]:
    value, digits = goal["value"], goal["digits"]
    reached = f"{value['median']:.{digits}f}"
    if value["low"] != value["high"]:
        reached += f" [{value['low']:.{digits}f}–{value['high']:.{digits}f}]"
    sign = "≤ " if goal["at_most"] else ""
    return [goal["work"], f"{sign}{goal['must']:g}", f"{sign}{goal['stretch']:g}", reached, goal["verdict"]]


def _about(results: Mapping[str, Any]) -> str:
    machine, images = results["machine"], results["images"]
    lines = [f"{results['date']}, {', '.join(f'{key} {value}' for key, value in machine.items())}"]
    for name, tool in results["tools"].items():
        lines.append(f"- {name} {tool['version']}: {tool['settings']}. {tool['durability']}.")
    records = results["records"]
    if disturbed := sum(Record(**record).disturbed for record in records):
        said = "had others beside them; such a time counts only where there is no other"
        lines.append(f"- {disturbed} of {len(records)} processes {said}.")
    for name, image in images.items():
        changed = image.get("changed_bytes", {})
        grown = ", ".join(f"{int(size) >> 10} KiB {count / 1e6:.0f} MB" for size, count in changed.items())
        lines.append(f"- {name}: {image['bytes_in_use'] / 1e6:.0f} MB in use{'; changed by ' + grown if grown else ''}")
    return "\n".join(lines)
