"""The outcome of tests as the XML that CI systems read (JUnit's)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from engine.cli.writing import write_file
from policies.errors import printable
from policies.verdicts import Verdict


def write_junit(file: Path, verdicts: Sequence[tuple[Verdict, float]]) -> None:
    """One suite a policy file, one case a test, with the seconds that it took."""
    write_file(file, junit(verdicts), mode=0o666)


def junit(verdicts: Sequence[tuple[Verdict, float]]) -> bytes:
    """The document."""
    root = ElementTree.Element("testsuites", {"name": "backstay policy test", **_counts(verdicts)})
    for file in dict.fromkeys(verdict.case.source.file for verdict, _ in verdicts):
        mine = [one for one in verdicts if one[0].case.source.file == file]
        suite = ElementTree.SubElement(
            root, "testsuite", {"name": file, "errors": "0", "skipped": "0", **_counts(mine)}
        )
        for verdict, seconds in mine:
            _case(suite, verdict, seconds)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _counts(verdicts: Iterable[tuple[Verdict, float]]) -> dict[str, str]:
    listed = list(verdicts)
    return {
        "tests": str(len(listed)),
        "failures": str(sum(not verdict.passed for verdict, _ in listed)),
        "time": f"{sum(seconds for _, seconds in listed):.3f}",
    }


def _case(suite: ElementTree.Element, verdict: Verdict, seconds: float) -> None:
    source = verdict.case.source
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=source.file.removesuffix(".toml").replace("/", "."),
        name=printable(verdict.case.name),
        file=source.file,
        line=str(source.line),
        time=f"{seconds:.3f}",
    )
    if verdict.passed:
        return
    message = "; ".join(
        f"{one.key} of {one.vm}: expected {one.expected}, got {one.got}" if one.vm else f"{one.key}: {one.got}"
        for one in verdict.differences
    )
    failure = ElementTree.SubElement(case, "failure", type="difference", message=printable(message))
    lines = (line for one in verdict.differences for line in (str(one), *(f"  {why}" for why in one.why)))
    failure.text = "\n".join(map(printable, lines))
