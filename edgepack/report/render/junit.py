"""The cases of a report as JUnit's XML, which test runners and CI servers read."""

from __future__ import annotations

from itertools import groupby
from xml.etree import ElementTree

from edgepack.report.render.cells import line_text
from edgepack.report.report import Report


def render(report: Report) -> str:
    """A suite for each group, a case for each figure; what failed says why."""
    cases = sorted(report.cases, key=lambda case: case.group)
    failed = sum(1 for case in cases if case.failure)
    root = ElementTree.Element("testsuites", tests=str(len(cases)), failures=str(failed))
    for group, members in groupby(cases, key=lambda case: case.group):
        own = list(members)
        failures = sum(1 for case in own if case.failure)
        suite = ElementTree.SubElement(root, "testsuite", name=group, tests=str(len(own)), failures=str(failures))
        for case in own:
            element = ElementTree.SubElement(suite, "testcase", classname=group, name=case.name)
            if case.failure:
                text = line_text(case.failure)
                ElementTree.SubElement(element, "failure", message=text).text = text
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'
