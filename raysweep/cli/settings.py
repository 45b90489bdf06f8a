"""Commands that say what a job may contain: help and schema."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from raysweep.cli.common import json_option, print_json, print_next, say

if TYPE_CHECKING:
    from raysweep.job.settings import Setting

WIDTH = 100


@click.command("help")
@click.argument("key", required=False)
@json_option
def help_command(key: str | None, as_json: bool) -> None:
    """Say what a setting of a job means.

    KEY is its dotted path, such as cycle.learn.lr, a section, such as cycle.learn, or a strategy with its kind, such as
    prune.entropy. Without KEY, the sections of a job are listed.
    """
    from raysweep.job.settings import find, inside

    found = find(key) if key is not None else []
    if as_json:
        print_json([_as_dict(setting, inside(setting.key)) for setting in found] if found else _dicts(inside()))
        return
    for setting in found:
        say(f"{setting.key}: {setting.type}{_default(setting)}")
        say(_filled(setting.doc, "  "))
    within = [inner for setting in found for inner in inside(setting.key)] if found else inside()
    if within:
        say("" if found else "The top level of a job:")
        _print_names(within)
        print_next(f"raysweep help {within[-1].key}")


@click.command()
@click.argument("of", type=click.Choice(["job", "space"]), default="job", metavar="[job|space]")
def schema(of: str) -> None:
    """Print the JSON Schema of a job, or of a search space.

    Editors check and complete a file by it: write it to job.schema.json, and begin the job with the line
    `# yaml-language-server: $schema=job.schema.json`.
    """
    from raysweep.job.schema import job_schema, space_schema

    print_json(job_schema() if of == "job" else space_schema())


def _print_names(settings: Sequence[Setting]) -> None:
    """Print one line for each setting: its name, default, and the first sentence of what it means."""
    names = max(len(setting.name) for setting in settings)
    defaults = max(len(setting.default) for setting in settings)
    for setting in settings:
        sentence = setting.doc.partition(". ")[0].rstrip(".")
        say(f"  {setting.name:<{names}}  {setting.default:<{defaults}}  {sentence}".rstrip())


def _default(setting: Setting) -> str:
    if setting.default in ("", "required"):
        return f"; {setting.default}" if setting.default else ""
    return f"; default {setting.default}"


def _filled(text: str, indent: str) -> str:
    # Only at spaces: a path or a range must stay whole, so that it can be copied.
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _as_dict(setting: Setting, within: Sequence[Setting]) -> dict[str, object]:
    return {**setting.__dict__, "settings": _dicts(within)} if setting.is_section else dict(setting.__dict__)


def _dicts(settings: Sequence[Setting]) -> list[dict[str, object]]:
    return [dict(setting.__dict__) for setting in settings]
